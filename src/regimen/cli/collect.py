"""`regimen collect`: a model plays tasks of an environment; its rollouts are written as they finish.

In: a configuration, overrides and flags (a flag wins over the file). Out: the rollouts and the files beside them; on
the screen the reward so far, failures and speed, and at the end the figures.
Refuses what the configuration and the pipeline refuse; errors are left to the command line's one place for them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from regimen.config.load import load_collect_config
from regimen.config.schema_loops import CollectConfig
from regimen.errors import UsageError
from regimen.gym.collect import Collection
from regimen.gym.protocol import files_of, is_failure
from regimen.pipelines.collect import collect as collect_rollouts

DEFAULTS: dict[str, Any] = {"environment": {"name": "calculator"}, "output": "rollouts.jsonl"}
PASSING = 1.0


def _option(text: str) -> Any:
    return typer.Option(help=text, show_default=False)


def collect(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A configuration, and overrides.", show_default=False),
    ] = None,
    model: Annotated[str | None, _option("Model folder or hub name.")] = None,
    model_url: Annotated[
        str | None, _option("OpenAI-compatible endpoint that has the model, as in http://host/v1.")
    ] = None,
    token_ids: Annotated[bool, typer.Option("--token-ids", help="Ask that endpoint for token ids.")] = False,
    gym: Annotated[str | None, _option("Head server of a running NeMo Gym; its agent plays --tasks.")] = None,
    agent: Annotated[str | None, _option("Name of that gym's agent.")] = None,
    tasks: Annotated[str | None, _option("File of task rows for that agent.")] = None,
    environment: Annotated[
        str | None,
        _option(
            "Name, or path/to/file.py:ClassName; verifiers takes environment.options.module=NAME. (default calculator)"
        ),
    ] = None,
    split: Annotated[str | None, _option("train, validation or test. (default train)")] = None,
    num_tasks: Annotated[int | None, _option("How many tasks. (default all)")] = None,
    num_repeats: Annotated[int | None, _option("Episodes per task. (default 1)")] = None,
    temperature: Annotated[float | None, _option("0 is greedy. (default 1)")] = None,
    max_new_tokens: Annotated[int | None, _option("Limit of one answer. (default 256)")] = None,
    max_turns: Annotated[int | None, _option("Model calls of one episode. (default the environment's)")] = None,
    seed: Annotated[int | None, _option("Seed of the sampling. (default 0)")] = None,
    concurrency: Annotated[int | None, _option("Episodes at once. (default 32)")] = None,
    chat_template: Annotated[str | None, _option("Template where the model's own will not do, like 'tools'.")] = None,
    output: Annotated[str | None, _option("File to write. (default rollouts.jsonl)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Play only what is missing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier rollouts.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Play an environment's tasks with a model and write every episode as a row.

    Beside the rollouts stand the task rows, the failures and the aggregate metrics.
    """
    flags: dict[str, Any] = {
        "model": model,
        "model_url": model_url,
        "token_ids": token_ids or None,
        "gym": gym,
        "agent": agent,
        "tasks": tasks,
        "environment.name": environment,
        "split": split,
        "num_tasks": num_tasks,
        "num_repeats": num_repeats,
        "generation.temperature": temperature,
        "generation.max_new_tokens": max_new_tokens,
        "max_turns": max_turns,
        "seed": seed,
        "concurrency": concurrency,
        "chat_template": chat_template,
        "output": output,
        "resume": resume or None,
        "overwrite": overwrite or None,
    }
    _run(config_of(words or [], flags), json_output)


def _run(config: CollectConfig, json_output: bool) -> None:
    screen = Console(stderr=True)
    for note in config.notes:
        screen.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)
    collection = _with_progress(config, screen)
    figures = figures_of(collection, config)
    if json_output:
        typer.echo(json.dumps(figures))
    else:
        print_figures(figures, Console())


def config_of(words: list[str], flags: dict[str, Any]) -> CollectConfig:
    """The configuration of the words (a file or a shipped name, then overrides) and of the flags given."""
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(names) > 1:
        raise UsageError(f"two configurations given: {names[0]} and {names[1]}", expected="one, then key=value")
    overrides = [word for word in words if word not in names]
    overrides += [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    return load_collect_config(names[0] if names else DEFAULTS, overrides)


class Display:
    """The line that shows how far a collection is: reward so far, share that passes, failures, speed."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.line: TaskID = progress.add_task("loading the model", total=None, figures="")
        self.num_scored = self.num_passing = self.num_failed = self.num_tokens = 0
        self.reward = 0.0
        self.started = time.monotonic()

    def begin(self, num_episodes: int) -> None:
        """Take the number of episodes in all."""
        self.progress.update(self.line, total=num_episodes)

    def show(self, row: dict[str, Any]) -> None:
        """Count one episode that has ended."""
        if is_failure(row):
            self.num_failed += 1
        else:
            self.num_scored += 1
            self.reward += row["reward"]
            self.num_passing += row["reward"] >= PASSING
        self.num_tokens += row["response"]["usage"]["output_tokens"]
        self.progress.update(self.line, description="collecting", advance=1, figures=self.figures())

    def figures(self) -> str:
        """The figures behind the bar."""
        scored = max(self.num_scored, 1)
        speed = self.num_tokens / max(time.monotonic() - self.started, 1e-9)
        failed = f"  failed {self.num_failed}" if self.num_failed else ""
        return f"reward {self.reward / scored:.2f}  passing {self.num_passing / scored:.0%}{failed}  {speed:.0f} tok/s"


def _with_progress(config: CollectConfig, screen: Console) -> Collection:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen) as progress:
        display = Display(progress)
        return collect_rollouts(config, on_start=display.begin, on_row=display.show)


def figures_of(collection: Collection, config: CollectConfig) -> dict[str, Any]:
    """What the end of the command says."""
    rows = collection.rows
    outcomes: dict[str, int] = {}
    for row in [*rows, *collection.failures]:
        outcome = row["regimen"]["outcome"]
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    passing = sum(row["reward"] >= PASSING for row in rows)
    return {
        "environment": config.agent or config.environment.name,
        "split": config.tasks or config.split,
        "episodes": collection.num_episodes,
        "resumed": collection.num_resumed,
        "outcomes": outcomes,
        "mean_reward": collection.mean_reward,
        "passing": passing / len(rows) if rows else None,
        "seconds": round(collection.seconds, 1),
        "output": config.output,
    }


def print_figures(figures: dict[str, Any], console: Console) -> None:
    """The figures as a table, and what to do next."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    resumed = f", {figures['resumed']:,} of them from before" if figures["resumed"] else ""
    table.add_row("episodes", f"{figures['episodes']:,} of {figures['environment']}/{figures['split']}{resumed}")
    table.add_row("outcomes", ", ".join(f"{name} {count:,}" for name, count in figures["outcomes"].items()))
    if figures["mean_reward"] is not None:
        table.add_row("reward", f"mean {figures['mean_reward']:.3f}, passing {figures['passing']:.1%}")
    table.add_row("time", f"{figures['seconds']:.0f} s")
    table.add_row("written to", escape(figures["output"]))
    console.print(table)
    failures = files_of(Path(figures["output"])).failures
    failed = sum(count for name, count in figures["outcomes"].items() if name not in ("ok", "truncated"))
    if failed:
        console.print(f"{failed:,} failed, see {escape(str(failures))}; --resume plays them again", soft_wrap=True)
    console.print(f"next: regimen inspect {escape(figures['output'])}", highlight=False, soft_wrap=True)

"""`regimen evaluate`: how good a model is, and whether it is better than another.

In: models (and a base), with flags or a configuration; or rollout files. Out: a table on the screen, or the evaluation
as JSON; with an output folder the rollouts, evaluation.json and report.html.
Refuses: models and rollout files at once, or neither, and options of the one with the other.
"""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from regimen.cli.progress import shown_progress
from regimen.config.load import load_evaluate_config
from regimen.config.schema import EvaluateConfig
from regimen.errors import UsageError
from regimen.evaluation.compare import comparison_text
from regimen.evaluation.metrics import usual_ks
from regimen.evaluation.report import environment_tables, terminal_table, warnings_of
from regimen.pipelines.evaluate import PASS_THRESHOLD, Evaluation, evaluate_rollouts
from regimen.pipelines.evaluate import evaluate as evaluate_models

# What is played without a configuration.
DEFAULTS: dict[str, Any] = {
    "environment": {"name": "calculator"},
    "num_tasks": 200,
    "generation": {"temperature": 0.0},
    "output": "evaluation",
}
OVERRIDE = re.compile(r"[+~]?[\w.]+=|~[\w.]+$")


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL... KEY=VALUE...", help="Model folders or hub names.", show_default=False),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Base model to compare with.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration file or shipped name; flags override it.")] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            help="Name, or file.py:Class; verifiers takes environment.options.module=NAME. (default calculator)"
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test. (default test)")] = None,
    num_tasks: Annotated[int | None, typer.Option(min=1, help="How many tasks. (default 200)")] = None,
    num_repeats: Annotated[int | None, typer.Option(min=1, help="Episodes per task. (default 1)")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy. (default 0)")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Limit of one answer. (default 256)")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling. (default 0)")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Episodes at once. (default 32)")] = None,
    chat_template: Annotated[str | None, typer.Option(help="Template name, file or text, not the model's.")] = None,
    pass_at: Annotated[list[int] | None, typer.Option(min=1, help="k of pass@k; may be repeated.")] = None,
    rollouts: Annotated[list[Path] | None, typer.Option(help="Evaluate rollout files instead of playing.")] = None,
    against_rollouts: Annotated[list[Path] | None, typer.Option(help="Rollout files to compare with.")] = None,
    pass_threshold: Annotated[
        float | None, typer.Option(help="Least passing reward in --rollouts. (default 1)")
    ] = None,
    max_bad: Annotated[
        float | None, typer.Option(help="Share of bad rows to accept in --rollouts. (default 0.01)")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write. (default evaluation, when playing)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Play only what is missing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an evaluation.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Mean reward, pass@k, 95% intervals clustered by task, and the paired difference on the same tasks."""
    models, overrides = sorted_words(words or [])
    playing = {
        "models": models or None,
        "against": against,
        "environment.name": environment,
        "split": split,
        "num_tasks": num_tasks,
        "num_repeats": num_repeats,
        "generation.temperature": temperature,
        "generation.max_new_tokens": max_new_tokens,
        "seed": seed,
        "concurrency": concurrency,
        "chat_template": chat_template,
    }
    only_files = {"against_rollouts": against_rollouts, "pass_threshold": pass_threshold, "max_bad": max_bad}
    if rollouts:
        _refuse({**playing, "config": config, "overrides": overrides, "resume": resume}, "with --rollouts")
        sides = (rollouts, against_rollouts or None)
        found = _from_files(sides, output, pass_at or [], pass_threshold, max_bad, overwrite)
    else:
        _refuse(only_files, "without --rollouts")
        flags = {**playing, "pass_at": pass_at or None, "output": str(output) if output else None}
        loaded = configured(config, {**flags, "overwrite": overwrite or None}, overrides)
        output = Path(loaded.output)
        found = _played(loaded, resume)
    if json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        print_evaluation(found, output, Console())


def _from_files(
    sides: tuple[list[Path], list[Path] | None],
    output: Path | None,
    ks: list[int],
    pass_threshold: float | None,
    max_bad: float | None,
    overwrite: bool,
) -> Evaluation:
    return evaluate_rollouts(
        *sides,
        output=output,
        ks=ks,
        pass_threshold=PASS_THRESHOLD if pass_threshold is None else pass_threshold,
        max_bad=0.01 if max_bad is None else max_bad,
        overwrite=overwrite,
    )


def _played(config: EvaluateConfig, resume: bool) -> Evaluation:
    for note in config.notes:
        typer.echo(f"note: {note}", err=True)
    with shown_progress() as report:
        return evaluate_models(config, report, resume=resume)


def sorted_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Model names, and `key=value` overrides; a folder that has an equals sign in its name is still a model."""
    overrides = [word for word in words if OVERRIDE.match(word) and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides


def configured(config: str | None, flags: Mapping[str, Any], overrides: Sequence[str]) -> EvaluateConfig:
    """The configuration: the file, or our defaults; the flags that were given over it; then the overrides."""
    if config is None and flags.get("models") is None:
        raise UsageError("neither a model nor --rollouts given", expected="a model folder, or --rollouts FILE")
    given = {name: value for name, value in flags.items() if value is not None}
    if config is None and "pass_at" not in given:
        given["pass_at"] = usual_ks(given.get("num_repeats", 1))
    # JSON is YAML: a flag's value reads as what it is.
    texts = [f"{name}={jsonlib.dumps(value)}" for name, value in given.items()]
    return load_evaluate_config(DEFAULTS if config is None else config, [*texts, *overrides])


def _refuse(options: Mapping[str, Any], where: str) -> None:
    given = [name for name, value in options.items() if value is not None and value is not False and value != []]
    if given:
        name = given[0].split(".")[-1].replace("_", "-")
        flag = {"models": "a model", "name": "--environment", "overrides": "a key=value"}.get(name, f"--{name}")
        raise UsageError(f"{flag} means nothing {where}", fix="leave it out")


def print_evaluation(evaluation: Evaluation, output: Path | None, console: Console) -> None:
    """The table, each paired difference in a sentence, the warnings, and where the files are."""
    console.print(terminal_table(evaluation.models))
    for table in environment_tables(evaluation.environments):
        console.print(table)
    for comparison in [model.comparison for model in evaluation.models if model.comparison]:
        sentence = f"{comparison.label} against {comparison.against}: {comparison_text(comparison)}"
        console.print(escape(f"{sentence}: {comparison.verdict}"), highlight=False, soft_wrap=True)
        counts = f"{comparison.wins} tasks won, {comparison.ties} tied, {comparison.losses} lost"
        console.print(f"  {counts}", highlight=False)
    for warning in warnings_of(evaluation.models):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    if output is not None:
        console.print(f"written to {escape(str(output))}", highlight=False, soft_wrap=True)

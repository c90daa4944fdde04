"""`regimen inspect`: what is in rollout files, what is wrong with them, what to do next.

In: flags. Out: tables, problems and a plan on the screen, or one JSON document.
Refuses what the pipeline refuses; errors are left to the command line's one place for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from regimen.cli.findings import escape, print_findings
from regimen.diagnosis.recommend import Recommendation
from regimen.errors import RolloutError
from regimen.pipelines.inspect import Inspection, inspect_rollouts
from regimen.rollouts.moments import Summary
from regimen.rollouts.reader import ReadReport
from regimen.rollouts.statistics import Rewards, Statistics
from regimen.rollouts.writer import encode_row

BAR = 30
SHOWN = 8


def inspect(
    rollouts: Annotated[list[Path], typer.Argument(help="Rollout files (JSON lines).", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write unreadable rows with their reasons to this file.")
    ] = None,
    tasks: Annotated[Path | None, typer.Option(help="Task rows, where they do not stand beside the rollouts.")] = None,
    max_bad: Annotated[float, typer.Option(help="Share of unreadable rows to accept.")] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the quarantine file.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub name: look at the tokens too, with its tokenizer.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="Template instead of the tokenizer's own: a file, or 'tools'. Needs --model.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens that a training sequence may have.")] = None,
) -> None:
    """Show what rollouts hold, the problems in them with their fix, and a plan."""
    inspection = inspect_rollouts(
        rollouts,
        quarantine=quarantine,
        tasks=tasks,
        max_bad=max_bad,
        overwrite=overwrite,
        model=model,
        chat_template=chat_template,
        max_length=max_length,
    )
    if json:
        typer.echo(encode_row(inspection).decode(), nl=False)
    else:
        print_inspection(inspection, Console(highlight=False))
    if inspection.error is not None:
        raise RolloutError(inspection.error)


def print_inspection(inspection: Inspection, console: Console) -> None:
    """The three parts, in order: figures, problems, plan."""
    statistics = inspection.statistics
    console.print(figures_table(inspection.read, statistics))
    if len(statistics.environments) > 1:
        console.print(environments_table(statistics))
    if statistics.scored:
        print_histogram(statistics.rewards, console)
    print_findings(inspection.findings, console)
    print_plan(inspection.recommendation, console)


def figures_table(report: ReadReport, statistics: Statistics) -> Table:
    """What is in the files, one fact a line."""
    title = report.files[0] if len(report.files) == 1 else f"{len(report.files)} files"
    table = Table(title=escape(title), title_justify="left", show_header=False, title_style="bold")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in [*_row_lines(report, statistics), *_scored_lines(statistics)]:
        table.add_row(name, escape(text))
    return table


def _row_lines(report: ReadReport, statistics: Statistics) -> list[tuple[str, str]]:
    lines = [("rows", f"{report.rows:,} read, {statistics.scored:,} with a reward, {report.bad:,} bad")]
    lines.append(("outcomes", _counts(statistics.outcomes)))
    if report.failures:
        lines.append(("failures file", f"{_counts(report.failures)} (failed episodes, kept out of rewards)"))
    if len(statistics.environments) == 1:
        lines.append(("environment", next(iter(statistics.environments))))
    unreadable = f"; {report.bad_task_rows:,} task rows are unreadable" if report.bad_task_rows else ""
    lines.append(("task rows", f"found for {report.with_task:,} of {report.good:,} rows{unreadable}"))
    return lines


def _scored_lines(statistics: Statistics) -> list[tuple[str, str]]:
    if not statistics.scored:
        return []
    groups = statistics.groups
    lines = [
        ("tasks", f"{groups.num_tasks:,}, rollouts per task: {_range(groups.repeats)}"),
        *_reward_lines(statistics.rewards),
        (
            "groups",
            f"{groups.num_repeated:,} with repeats: {groups.num_varied:,} with variance, "
            f"{groups.num_all_pass:,} all pass, {groups.num_all_fail:,} all fail",
        ),
        ("pass@k", "  ".join(f"@{at.k} {at.value:.3f}" for at in groups.pass_at)),
        ("pairs", f"{groups.num_pairs:,} tasks with a gap of {groups.pair_gap:g} or more, mean {groups.mean_gap:.2f}"),
        ("length", f"turns {_range(statistics.turns)}, items {_range(statistics.items)}"),
    ]
    if statistics.output_tokens.count:
        ids = f"{statistics.num_with_token_ids:,} of {statistics.scored:,} rows carry token ids"
        lines.append(("tokens", f"sampled {_range(statistics.output_tokens)}; {ids}"))
    lines.append(("tools", _tools_line(statistics)))
    for name, table in (("components", statistics.components), ("metrics", statistics.metrics)):
        if table:
            shown = ", ".join(f"{key} {value.mean:.3g}" for key, value in list(table.items())[:SHOWN])
            lines.append((name, shown + (f" and {len(table) - SHOWN} more" if len(table) > SHOWN else "")))
    return lines


def _reward_lines(rewards: Rewards) -> list[tuple[str, str]]:
    summary = rewards.summary
    spread = f"mean {summary.mean:.3f}, sd {summary.sd:.3f}, from {summary.min:g} to {summary.max:g}"
    bound = "reward 1" if rewards.kind == "binary" else f"reward at least {rewards.success_threshold:g}"
    passing = f"{rewards.num_passing:,} of {summary.count:,} ({rewards.success_rate:.1%}), {bound}"
    return [("reward", f"{rewards.kind}: {spread}"), ("passing", passing)]


def _tools_line(statistics: Statistics) -> str:
    tools = statistics.tools
    if not tools.num_calls:
        return f"offered in {tools.num_offering:,} rows, never called" if tools.num_offering else "none"
    names = _counts(dict(list(tools.by_name.items())[:SHOWN]))
    malformed = f"; {tools.num_malformed:,} malformed" if tools.num_malformed else ""
    return f"{tools.num_calls:,} calls, {tools.calls_per_episode:.2f} an episode ({names}){malformed}"


def environments_table(statistics: Statistics) -> Table:
    """One line per environment."""
    table = Table(title="environments", title_justify="left", title_style="bold")
    table.add_column("environment", overflow="fold")
    for column in ("rows", "scored", "mean reward", "passing"):
        table.add_column(column, justify="right")
    for name, part in statistics.environments.items():
        table.add_row(
            escape(name), f"{part.rows:,}", f"{part.scored:,}", f"{part.mean_reward:.3f}", f"{part.success_rate:.1%}"
        )
    return table


def print_histogram(rewards: Rewards, console: Console) -> None:
    """The distribution of rewards as bars; binary rewards have only the two that hold something."""
    parts = [rewards.histogram[0], rewards.histogram[-1]] if rewards.kind == "binary" else rewards.histogram
    most = max(part.count for part in parts)
    console.print("[bold]rewards[/bold]")
    for number, part in enumerate(parts):
        label = str(number) if rewards.kind == "binary" else f"{part.low:.4g} to {part.high:.4g}"
        bar = "█" * max(round(BAR * part.count / most), int(part.count > 0))
        console.print(f"  {label:>16}  {bar} {part.count:,}")


def print_plan(plan: Recommendation, console: Console) -> None:
    """The recommendation as a numbered list, commands on lines of their own."""
    console.print(f"[bold]recommendation:[/bold] {escape(plan.summary)}")
    for number, step in enumerate(plan.steps, 1):
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", no_wrap=True, width=4)
        table.add_column(overflow="fold")
        table.add_row(f"{number}.", escape(f"{step.title}\nbecause: {step.reason}"))
        console.print(table)
        for command in step.commands:  # never broken, so that it can be copied
            console.print(f"     [green]$ {escape(command)}[/green]", soft_wrap=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _range(summary: Summary) -> str:
    if summary.min == summary.max:
        return f"{summary.mean:g}"
    return f"{summary.mean:.3g} ({summary.min:g} to {summary.max:g})"

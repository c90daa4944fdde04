"""What a loop shows: a table of its rounds for the terminal, and its page.

In: rounds and the final evaluation. Out: text, `report.html`. Nothing is refused: an existing page is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from regimen.evaluation.records import Curve, LedgerTable, ReportData, Series, StageTime, examples_of
from regimen.evaluation.report import (
    difference_text,
    environment_tables,
    number_text,
    terminal_table,
    write_report,
)
from regimen.pipelines.evaluate import Evaluation, read_side
from regimen.pipelines.run import versions

if TYPE_CHECKING:
    from regimen.pipelines.iterate import Round

WIDTH = 100
COLUMNS = (
    "round",
    "from",
    "collected\n(reward)",
    "trained\non",
    "validation:\nnew / best",
    "paired\ndifference [95%]",
    "",
)


def rounds_table(rounds: Sequence[Round], evaluation: Evaluation | None) -> str:
    """The rounds, then the final comparison, as text."""
    table = Table(title="rounds", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name.replace("[", r"\["), justify="right", no_wrap=True)
    for done in rounds:
        table.add_row(*(cell.replace("[", r"\[") for cell in _cells(done)))
    console = Console(width=WIDTH)
    with console.capture() as capture:
        console.print(table)
        if evaluation is not None:
            console.print(terminal_table(evaluation.models, title="final tasks, played once"))
            for by_environment in environment_tables(evaluation.environments):
                console.print(by_environment)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def name_of(number: int) -> str:
    """`start`, or the round."""
    return f"round {number}" if number else "start"


def _cells(done: Round) -> list[str]:
    """A row of the table; stages that are not finished leave dashes."""
    found = done.comparison
    return [
        str(done.number),
        name_of(done.start),
        f"{done.num_episodes}\n({number_text(done.mean_reward)})" if "collect" in done.seconds else "–",
        f"{done.converted.get('trained', 0)}\n{done.num_steps} steps" if "train" in done.seconds else "–",
        f"{number_text(found.mean)} /\n{number_text(found.base_mean)}" if found else "–",
        f"{difference_text(found)}\n{found.verdict}" if found else "–",
        ("kept" if done.kept else "dropped") if found else "unfinished",
    ]


def write_loop_report(
    folder: Path, rounds: Sequence[Round], evaluation: Evaluation, seconds: float, config: str
) -> Path:
    """Write `report.html`: the final comparison, and how each round went."""
    sides = {label: read_side([folder / "final" / path], max_bad=0.0) for label, path in evaluation.rollouts.items()}
    stages = [
        StageTime(name=f"round {done.number}: {name}", seconds=value)
        for done in rounds
        for name, value in done.seconds.items()
    ]
    data = ReportData(
        title=f"Loop of {len(rounds)} rounds",
        summary=" ".join(_sentence(done) for done in rounds),
        models=evaluation.models,
        environments=evaluation.environments,
        curves=_curves(rounds),
        stages=[*stages, StageTime(name="final evaluation", seconds=seconds)],
        ledgers=[table for done in rounds for table in _ledgers(done)],
        examples=examples_of(sides),
        facts={name: str(value) for name, value in versions().items()},
        config=config,
    )
    return write_report(data, folder / "report.html", overwrite=True)


def _sentence(done: Round) -> str:
    found = done.comparison
    if found is None:
        return f"Round {done.number} is not finished."
    return (
        f"Round {done.number}, from {name_of(done.start)}: {difference_text(found)} on {found.num_tasks} validation "
        f"tasks ({found.verdict}), {'kept' if done.kept else 'dropped'}."
    )


def _curves(rounds: Sequence[Round]) -> list[Curve]:
    found = [(done.number, done.comparison) for done in rounds if done.comparison is not None]
    if not found:
        return []
    new = Series(name="new", points=[(float(number), comparison.mean) for number, comparison in found])
    best = Series(name="best before", points=[(float(number), comparison.base_mean) for number, comparison in found])
    return [Curve(title="mean reward on validation tasks, by round", series=[new, best])]


def _ledgers(done: Round) -> list[LedgerTable]:
    tables = [("convert", "rows", done.converted), ("train", "rows or episodes", done.trained)]
    return [
        LedgerTable(title=f"round {done.number}: {name}", unit=unit, buckets=buckets)
        for name, unit, buckets in tables
        if buckets
    ]

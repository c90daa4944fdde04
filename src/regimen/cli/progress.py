"""Progress on the error stream: bars with the time left on a terminal, a line now and then in a log.

Pipelines report `(label, done, total)`, and may add a note with the latest figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 20.0


class Report(Protocol):
    """What a pipeline calls as its work goes on."""

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts of the stage `label` are finished."""
        ...


@contextmanager
def shown_progress() -> Generator[Report]:
    """A `Report` that draws bars on a terminal and writes lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineReport()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console) as bar:
        yield BarReport(bar)


class PatientReport:
    """Says nothing of stages that end within `seconds`: most files are read in no time."""

    def __init__(self, report: Report, seconds: float = 2.0) -> None:
        self._report, self._seconds = report, seconds
        self._begun: dict[str, float] = {}
        self._started = time.monotonic()

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Hand on what takes longer."""
        now = time.monotonic()
        if now - self._begun.setdefault(label, self._started) >= self._seconds:
            self._report(label, done, total, note)
        if done >= total:
            self._started = now


class BarReport:
    """One bar per label."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._lines: dict[str, TaskID] = {}

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Draw the bar of `label`."""
        if label not in self._lines:
            self._lines[label] = self._bar.add_task(escape(label), total=total, note="")
        self._bar.update(self._lines[label], completed=done, total=total, note=escape(note))


class LineReport:
    """A line when a stage ends, and every twenty seconds until then, with the time left."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Write a line when one is due."""
        now = time.monotonic()
        begun = self._begun.setdefault(label, now)
        if done < total and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        print(line_of(label, done, total, now - begun, note), file=sys.stderr, flush=True)


def line_of(label: str, done: int, total: int, seconds: float, note: str = "") -> str:
    """One line of a log: how far, how long, how long still."""
    parts = [f"{label}: {done}/{total}", f"{clock(seconds)} so far"]
    if 0 < done < total:
        parts.append(f"{clock(seconds / done * (total - done))} left")
    return ", ".join([*parts, *([note] if note else [])])


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

"""Reading rollouts: streaming, one row in memory at a time, every bad row accounted for.

In: rollout files of any kind that `sources` knows: JSON lines plain or compressed, Parquet, folders, patterns, a pipe.
Beside `X.jsonl` may stand `X_materialized_inputs.jsonl` (the task rows) and `X_failures.jsonl` (episodes that failed:
counted, never rewards).
Out: `Rollout`s, and a `ReadReport` with the counts.
Refuses: paths that are no rollouts (`UsageError`); empty files, Git LFS pointers, compressed data that ends too early,
and files with more bad rows than allowed (`RolloutError`, after every good row was given out). A bad row goes to the
quarantine file with its reason.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import msgspec

from regimen.errors import RolloutError
from regimen.rollouts.lines import check_first_line, decode_row, is_blank
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Rollout, Source, rollout_from_row
from regimen.rollouts.report import Account, BadRow, ReadReport, bad_row, count
from regimen.rollouts.siblings import TaskIndex, TaskPlaces, failures_beside, index_tasks, tasks_beside
from regimen.rollouts.sources import Paths, checked_paths, open_lines

__all__ = [
    "BadRow",
    "Paths",
    "ReadReport",
    "RolloutReader",
    "checked_paths",
    "failure_class",
    "failures_beside",
    "read_failures",
    "read_rollouts",
    "tasks_beside",
]


class RolloutReader:
    """Reads rollout files in order: `with RolloutReader(paths) as reader: for rollout in reader: ...`.

    `report` is complete when the iteration has ended. Past `max_bad` (a share of the rows), or when no row could be
    read, the iteration ends with `RolloutError` after the last good row.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        quarantine: Path | str | None = None,
        tasks: Path | str | None = None,
        max_bad: float = 0.01,
        overwrite: bool = False,
    ) -> None:
        self.paths = checked_paths(paths)
        self._account = Account(self.paths, quarantine, max_bad, overwrite)
        self._tasks = checked_paths(tasks)[0] if tasks is not None else None

    @property
    def report(self) -> ReadReport:
        """What was read so far."""
        return self._account.report

    def __enter__(self) -> RolloutReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._account.close()

    def __iter__(self) -> Iterator[Rollout]:
        self._account.begin()
        try:
            for path in self.paths:
                yield from self._read_file(path)
        finally:
            self._account.close()
        self._account.judge()

    def _read_file(self, path: Path) -> Iterator[Rollout]:
        report = self.report
        before = report.rows
        for rollout in read_failures(path):
            count(report.failures, failure_class(rollout))
        decode = msgspec.json.Decoder().decode
        with self._task_index(path) as tasks, open_lines(path) as lines:
            for line_number, line in enumerate(lines, 1):
                if line_number == 1:
                    check_first_line(line, path)
                if is_blank(line):
                    report.blank_lines += 1
                    continue
                rollout = self._read_line(line, Source(str(path), line_number), tasks, decode)
                if rollout is not None:
                    yield rollout
        self._account.check_rows(path, before)

    @contextlib.contextmanager
    def _task_index(self, path: Path) -> Generator[TaskIndex | None]:
        source = self._tasks or tasks_beside(path)
        if source is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="regimen-tasks-") as folder:
            places = task_places(source, Path(folder), "tasks", given=self._tasks is not None)
            self.report.bad_task_rows += places.num_bad
            with contextlib.closing(TaskIndex(places)) as tasks:
                yield tasks

    def _read_line(self, line: bytes, source: Source, tasks: TaskIndex | None, decode: Any) -> Rollout | None:
        report = self.report
        report.rows += 1
        try:
            row = decode_row(line, decode)
            task = tasks.find(row) if tasks is not None else None
            rollout = rollout_from_row(row, source, task)
        except RolloutError as error:
            self._account.set_aside(bad_row(line, source, str(error)))
            return None
        report.good += 1
        report.with_task += task is not None
        count(report.outcomes, rollout.outcome)
        return rollout


def read_rollouts(
    paths: Paths,
    *,
    quarantine: Path | str | None = None,
    tasks: Path | str | None = None,
    max_bad: float = 0.01,
    overwrite: bool = False,
) -> Iterator[Rollout]:
    """Iterate over the rollouts of one or more files; paths are checked at once, rows as they are asked for."""
    return iter(RolloutReader(paths, quarantine=quarantine, tasks=tasks, max_bad=max_bad, overwrite=overwrite))


def task_places(path: Path, folder: Path, name: str, *, given: bool) -> TaskPlaces:
    """Index a file of task rows in `folder`; one that a person has given must hold task rows."""
    places = index_tasks(path, folder, name)
    if given and not places.num_tasks:
        raise RolloutError(
            "no task row carries _ng_task_index",
            where=str(path),
            expected="the materialized inputs that were written with the rollouts",
        )
    return places


def read_failures(path: Path | str) -> Iterator[Rollout]:
    """The failed episodes recorded beside `path`, as unscored rollouts; none when there is no such file."""
    beside = failures_beside(Path(path))
    if beside is None:
        return
    with open_lines(beside) as lines:
        for line_number, line in enumerate(lines, 1):
            if not is_blank(line):
                yield failed_rollout(line, Source(str(beside), line_number))


def failed_rollout(line: bytes, source: Source) -> Rollout:
    """The failed episode of one line of a failures file; a line that cannot be read is a failure too."""
    try:
        return _failed_rollout(decode_row(line), source)
    except RolloutError as error:
        row = {"_ng_failure_class": "unreadable", "_ng_failure_message": str(error)}
        return _failed_rollout(row, source)


def failure_class(rollout: Rollout) -> str:
    """The name under which an unscored rollout is counted: its failure class or kind, else its outcome."""
    for field in ("_ng_failure_class", "failure_kind"):
        value = rollout.row.get(field)
        if isinstance(value, str) and value:
            return value
    return str(rollout.outcome)


def _failed_rollout(row: Any, source: Source) -> Rollout:
    if not isinstance(row, dict):
        raise RolloutError("the row is not an object")
    row = cast("dict[str, Any]", row)
    if not row.get("_ng_failure_class"):
        row = {**row, "_ng_failure_class": row.get("_ng_failure_type") or "unknown"}
    rollout = rollout_from_row(row, source)
    if rollout.outcome.is_scored:  # the file it stands in says more than its stamp
        rollout = msgspec.structs.replace(rollout, outcome=Outcome.ENVIRONMENT_FAILED, reward=None)
    return rollout

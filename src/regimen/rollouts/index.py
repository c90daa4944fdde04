"""An index of rollouts on disk: what selection needs of every row, and where the row stands.

In: rollout files of any kind. A first pass decodes of every row only what selection needs and keeps it in a file of
fixed-width records, so that memory does not grow with the number of rows; names of environments stay in memory.
Out: `IndexedRow`s in input order or grouped by task, and the rollouts of chosen rows, read by their byte range.
What cannot be sought (pipes, compressed files, tables) is copied as plain lines into the working folder.
Refuses what the reader refuses. Broken token fields, nesting near the parser's limit and numbers of thousands of
digits may be found only when the row is read whole: `RowReader.rollout` then raises `RolloutError`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from regimen.errors import UsageError
from regimen.rollouts.fields import HAS_TASK_INDEX
from regimen.rollouts.indexed import IndexedFile, IndexedRow, RowReader
from regimen.rollouts.lines import decode_row
from regimen.rollouts.order import DTYPE, Records, TaskOrder, read_records
from regimen.rollouts.packed import DEFAULT_ENVIRONMENT, PackedRows
from regimen.rollouts.partial import Where
from regimen.rollouts.parts import Part, Stretch, plan, read_stretches
from regimen.rollouts.processes import Processes
from regimen.rollouts.reader import failure_class, read_failures, task_places
from regimen.rollouts.report import Account, BadRow, ReadReport, count
from regimen.rollouts.siblings import TaskPlaces, failures_beside, tasks_beside
from regimen.rollouts.sources import Paths, checked_paths

ROWS_OF_A_BATCH = 4096


class _Placed(msgspec.Struct, frozen=True):
    """A part of the index, and what stands before it."""

    path: Path
    first_number: int
    first_line: int
    environments: list[int]


class RolloutIndex:
    """The rows of rollout files without their text; made by `build`, removed from disk by `close` or `with`."""

    def __init__(self, account: Account, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.files: list[str] = []
        self.num_rows = 0
        self._account = account
        self._folder = folder
        self._parts: list[_Placed] = []
        self._environments: list[str | None] = [None]
        self._codes: dict[str | None, int] = {None: 0}
        self._sources: list[IndexedFile] = []
        self._order: TaskOrder | None = None
        self._on_part: Callable[[int, int], None] | None = None

    @classmethod
    def build(
        cls,
        paths: Paths,
        *,
        quarantine: Path | str | None = None,
        tasks: Path | str | None = None,
        max_bad: float = 0.01,
        num_processes: int = 1,
        processes: Processes | None = None,
        fields: Sequence[str] = (),
        where: Where | None = None,
        alike: Sequence[str] = (),
        folder: Path | str | None = None,
        overwrite: bool = False,
        on_part: Callable[[int, int], None] | None = None,
    ) -> RolloutIndex:
        """Read the files once and index every good row; failures files come after all others.

        `where` is asked about every row, with the part of it that `fields` names: a dotted name such as
        `reward_components.format` brings its whole object. With several processes it must be a function at the top
        level of a module; where that is the script itself, its work must start under `if __name__ == "__main__":`.
        `processes` are the caller's own, in place of new ones. `alike` names fields by whose hash repeats can be told
        to have them alike. `on_part` hears how many of how many parts were read. The index lives in a new folder inside
        `folder`, or where temporary files go.
        """
        _check_processes(num_processes, where)
        in_script = getattr(where, "__module__", None) == "__main__"
        found = checked_paths(paths)
        given = checked_paths(tasks)[0] if tasks is not None else None
        account = Account(found, quarantine, max_bad, overwrite)
        account.begin()
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        index = cls(account, tempfile.TemporaryDirectory(prefix="regimen-index-", dir=folder))
        try:
            index._on_part = on_part
            with (
                contextlib.nullcontext(processes)
                if processes
                else Processes(num_processes, run_script=in_script) as at_work
            ):
                index._read(found, given, fields, where, alike, at_work)
            account.judge()
        except BaseException:
            index.close()
            raise
        return index

    @property
    def report(self) -> ReadReport:
        """What was read, as a `RolloutReader` reports it."""
        return self._account.report

    def __enter__(self) -> RolloutIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the index from disk; closing twice is allowed."""
        self._folder.cleanup()

    def rows(self) -> Iterator[IndexedRow]:
        """All rows in input order."""
        for records in self._records():
            yield from self._packed(records).rows()

    def groups(self) -> Iterator[list[IndexedRow]]:
        """The rows of one task at a time; tasks by environment and index, within a task by rollout index."""
        for packed in self.batches(ROWS_OF_A_BATCH):
            yield from packed.tasks()

    def batches(self, least: int) -> Iterator[PackedRows]:
        """The same still packed, whole tasks in batches of at least `least` rows; the last may be smaller."""
        for records in self._ordered().batches(least):
            yield self._packed(records)

    def can_be_named(self) -> bool:
        """Whether the task index alone tells every scored task and its prompt from all others."""
        found: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        for records in self._ordered().batches(ROWS_OF_A_BATCH):
            scored = records[~np.isnan(records["reward"])]
            if not (scored["flags"] & HAS_TASK_INDEX).all():
                return False
            starts = [0, *ends] if (ends := self._ordered().ends(scored)) or len(scored) else []
            changes = np.flatnonzero(scored["prompt"][1:] != scored["prompt"][:-1]) + 1
            if not np.isin(changes, starts).all():
                return False
            found.append(scored["task"][starts])
        tasks = np.concatenate(found) if found else np.zeros(0, np.uint64)
        return len(np.unique(tasks)) == len(tasks)

    def find(self, file: int, line: int) -> IndexedRow | None:
        """The row at a line of a file; None where there is no good row."""
        for part in self._parts:
            if not part.path.stat().st_size:
                continue
            records = np.memmap(part.path, DTYPE, "r")
            if records[0]["file"] != file or not 0 < line - part.first_line <= records[-1]["line"]:
                continue
            place = bisect_left(range(len(records)), line - part.first_line, key=lambda at: records[at]["line"])
            found = _numbered(records[place : place + 1].copy(), part)
            return next((row for row in self._packed(found).rows() if row.line == line), None)
        return None

    def plain_path(self, file: int) -> Path:
        """The file that holds the rows as plain lines: the file itself, or the copy that was made of it."""
        return Path(self._sources[file].path)

    def rewards(self) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
        """The rewards of the scored rows in input order, some thousand at a time."""
        for records in self._records():
            rewards = records["reward"]
            yield rewards[~np.isnan(rewards)]

    def open(self) -> RowReader:
        """A reader of rows by their place. It can be sent to another process, and works while the index is open."""
        return RowReader(self._sources)

    def _read(
        self,
        paths: list[Path],
        tasks: Path | None,
        fields: Sequence[str],
        where: Where | None,
        alike: Sequence[str],
        processes: Processes,
    ) -> None:
        folder = Path(self._folder.name)
        places = self._index_tasks(paths, tasks, folder)
        failures = [beside for path in paths if (beside := failures_beside(path)) is not None]
        files = [(path, False, places.get(path)) for path in paths] + [(path, True, None) for path in failures]
        stretches = list(plan(files, folder, processes.number))
        self._sources = [_indexed_file(stretch) for stretch in stretches if not stretch.start]
        self.files = [source.name for source in self._sources]
        try:
            self._join(paths, stretches, read_stretches(stretches, fields, where, alike, processes))
        finally:
            self._account.close()

    def _index_tasks(self, paths: list[Path], given: Path | None, folder: Path) -> dict[Path, TaskPlaces]:
        """The task rows of each file: those beside it, or the given ones for all."""
        made: dict[Path, TaskPlaces] = {}
        found: dict[Path, TaskPlaces] = {}
        for path in paths:
            source = given or tasks_beside(path)
            if source is None:
                continue
            if source not in made:
                made[source] = task_places(source, folder, f"tasks-{len(made)}", given=given is not None)
            found[path] = made[source]
            self.report.bad_task_rows += made[source].num_bad
        return found

    def _join(self, paths: list[Path], stretches: list[Stretch], parts: Iterator[Part]) -> None:
        """Put the parts one behind the other and count what they hold."""
        report = self.report
        first_line = rows_before = 0
        for place, (stretch, part) in enumerate(zip(stretches, parts, strict=True)):
            if not stretch.start:
                first_line, rows_before = 0, report.rows
            codes = [self._code(name) for name in part.environments]
            self._parts.append(_Placed(Path(part.records), self.num_rows, first_line, codes))
            self.num_rows += part.num_rows
            if self._on_part is not None:
                self._on_part(place + 1, len(stretches))
            if stretch.is_failures:
                for name, number in part.failures.items():
                    count(report.failures, name, number)
                continue
            self._count(part, first_line)
            first_line += part.num_lines
            is_last = place + 1 == len(stretches) or stretches[place + 1].file != stretch.file
            if is_last and report.rows == rows_before:
                self._refuse_empty(paths[stretch.file], rows_before)

    def _count(self, part: Part, first_line: int) -> None:
        report = self.report
        report.rows += part.num_rows + part.num_bad
        report.good += part.num_rows
        report.blank_lines += part.blank_lines
        report.with_task += part.with_task
        for name, number in part.outcomes.items():
            count(report.outcomes, name, number)
        with Path(part.bad).open("rb") as file:
            for line in file:
                bad = msgspec.convert(decode_row(line), BadRow)
                self._account.set_aside(msgspec.structs.replace(bad, line=bad.line + first_line))
        Path(part.bad).unlink()

    def _refuse_empty(self, path: Path, rows_before: int) -> None:
        for rollout in read_failures(path):
            count(self.report.failures, failure_class(rollout))
        self._account.check_rows(path, rows_before)

    def _code(self, environment: str | None) -> int:
        code = self._codes.setdefault(environment, len(self._codes))
        if code == len(self._environments):
            self._environments.append(environment)
        return code

    def _ranks(self) -> list[int]:
        """The place of each environment by name. Rows without one share the task ids, and the place, of "task"."""
        unnamed = DEFAULT_ENVIRONMENT if DEFAULT_ENVIRONMENT in self._codes else ""
        names = [name if name is not None else unnamed for name in self._environments]
        rank = {name: place for place, name in enumerate(sorted(set(names)))}
        return [rank[name] for name in names]

    def _ordered(self) -> TaskOrder:
        if self._order is None:
            self._order = TaskOrder(self._records(), self._ranks(), Path(self._folder.name) / "order.records")
        return self._order

    def _packed(self, records: Records) -> PackedRows:
        num_sampled = int(records["num_sampled"].sum())
        return PackedRows(records.tobytes(), len(records), num_sampled, self._environments, self._ranks())

    def _records(self) -> Iterator[Records]:
        """The records of all parts, numbered through."""
        for part in self._parts:
            for records in read_records(part.path):
                yield _numbered(records, part)


def _numbered(records: Records, part: _Placed) -> Records:
    """Records of a part with their numbers, lines and environments among those of the whole index."""
    records["number"] += np.uint64(part.first_number)
    records["line"] += part.first_line
    records["environment"] = np.asarray(part.environments, dtype=np.int32)[records["environment"]]
    return records


def _check_processes(num_processes: int, where: Where | None) -> None:
    if num_processes < 1:
        raise UsageError(f"is {num_processes}", where="num_processes", expected="at least 1")
    if num_processes == 1 or where is None:
        return
    try:
        ForkingPickler.dumps(where)
    except Exception as error:  # whatever the object's own pickling raises
        raise UsageError(
            f"cannot be given to other processes ({error})",
            where="where",
            expected="a function at the top level of a module",
        ) from None


def _indexed_file(stretch: Stretch) -> IndexedFile:
    path = stretch.path if stretch.spool is None else stretch.spool
    size, changed = (-1, -1) if stretch.spool is not None else _state(stretch.path)
    return IndexedFile(stretch.path, path, stretch.is_failures, stretch.tasks, size, changed)


def _state(path: str) -> tuple[int, int]:
    state = os.stat(path)  # noqa: PTH116
    return state.st_size, state.st_mtime_ns

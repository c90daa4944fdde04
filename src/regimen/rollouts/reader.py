"""Reading rollout files: streaming, one row in memory at a time, every bad row accounted for.

In: one or more rollout files (JSON lines). Beside `X.jsonl` may stand `X_materialized_inputs.jsonl` (the task rows)
and `X_failures.jsonl` (episodes that failed: counted, never rewards).
Out: `Rollout`s, and a `ReadReport` with the counts.
Refuses: paths that are no files (`UsageError`); empty files, Git LFS pointers, and files with more bad rows than
allowed (`RolloutError`, after every good row was given out). A bad row goes to the quarantine file with its reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import msgspec

from regimen.errors import RegimenError, RolloutError, UsageError
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Rollout, Source, rollout_from_row
from regimen.rollouts.siblings import FAILURES, MATERIALIZED, TaskIndex, failures_beside, tasks_beside
from regimen.rollouts.writer import JsonLinesWriter, refuse_existing

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REASONS_KEPT = 20

Paths = Path | str | Sequence[Path | str]


class BadRow(msgspec.Struct, frozen=True):
    """A row that could not be read: one line of the quarantine file."""

    file: str
    line: int
    reason: str
    text: str


class ReadReport(msgspec.Struct):
    """What was read. `rows` = `good` + `bad`; `failures` counts the rows of the failures files by class.

    `reasons` counts the bad rows by reason (the first few different ones); `first_bad` says where the first stands.
    """

    files: list[str] = []
    rows: int = 0
    good: int = 0
    bad: int = 0
    blank_lines: int = 0
    with_task: int = 0
    bad_task_rows: int = 0
    outcomes: dict[str, int] = {}
    failures: dict[str, int] = {}
    reasons: dict[str, int] = {}
    first_bad: Source | None = None
    quarantine: str | None = None


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
        if not 0 <= max_bad <= 1:
            raise UsageError(f"is {max_bad!r}", where="--max-bad", expected="a share from 0 to 1")
        self.paths = checked_paths(paths)
        self.max_bad = max_bad
        self.report = ReadReport()
        self._overwrite = overwrite
        self._quarantine = Path(quarantine) if quarantine is not None else None
        self._tasks = checked_paths(tasks)[0] if tasks is not None else None
        self._writer: JsonLinesWriter | None = None
        if self._quarantine is not None:
            refuse_existing(self._quarantine, overwrite)

    def __enter__(self) -> RolloutReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[Rollout]:
        self.report = ReadReport(files=[str(path) for path in self.paths])
        try:
            for path in self.paths:
                yield from self._read_file(path)
        finally:
            self._close()
        self._judge()

    def _read_file(self, path: Path) -> Iterator[Rollout]:
        before = self.report.rows
        for rollout in read_failures(path):
            _count(self.report.failures, failure_class(rollout))
        tasks = self._task_index(path)
        decode = msgspec.json.Decoder().decode
        try:
            with open_file(path) as file:
                for line_number, line in enumerate(file, 1):
                    line = first_line(line, path) if line_number == 1 else line
                    if line.isspace() or not line:
                        self.report.blank_lines += 1
                        continue
                    rollout = self._read_line(line, Source(str(path), line_number), tasks, decode)
                    if rollout is not None:
                        yield rollout
        finally:
            if tasks is not None:
                tasks.close()
        if self.report.rows == before:
            raise _empty(path, self.report)

    def _task_index(self, path: Path) -> TaskIndex | None:
        source = self._tasks or tasks_beside(path)
        tasks = TaskIndex(source) if source is not None else None
        if tasks is not None and self._tasks is not None and not tasks.num_tasks:
            tasks.close()
            raise RolloutError(
                "no task row carries _ng_task_index",
                where=str(self._tasks),
                expected="the materialized inputs that were written with the rollouts",
            )
        self.report.bad_task_rows += tasks.num_bad if tasks is not None else 0
        return tasks

    def _read_line(self, line: bytes, source: Source, tasks: TaskIndex | None, decode: Any) -> Rollout | None:
        report = self.report
        report.rows += 1
        try:
            row = decode_row(line, decode)
            task = tasks.find(row) if tasks is not None else None
            rollout = rollout_from_row(row, source, task)
        except RolloutError as error:
            text = line.decode(errors="backslashreplace").rstrip("\r\n")
            self._set_aside(BadRow(source.path, source.line, str(error), text))
            return None
        report.good += 1
        report.with_task += task is not None
        _count(report.outcomes, rollout.outcome)
        return rollout

    def _set_aside(self, bad: BadRow) -> None:
        report = self.report
        report.bad += 1
        report.first_bad = report.first_bad or Source(bad.file, bad.line)
        if bad.reason in report.reasons or len(report.reasons) < REASONS_KEPT:
            _count(report.reasons, bad.reason)
        if self._quarantine is None:
            return
        if self._writer is None:
            self._writer = JsonLinesWriter(self._quarantine.with_name(f".{self._quarantine.name}.{os.getpid()}.tmp"))
        self._writer.write(bad)

    def _close(self) -> None:
        """Give the quarantine file its name; one from an earlier reading goes when it may be overwritten."""
        if self._quarantine is None:
            return
        if self._writer is not None:
            self._writer.close()
            self._writer.path.replace(self._quarantine)
            self._writer = None
            self.report.quarantine = str(self._quarantine)
        elif self._overwrite and self.report.rows and self.report.quarantine is None:
            self._quarantine.unlink(missing_ok=True)

    def _judge(self) -> None:
        report = self.report
        if not report.bad or (report.good and report.bad <= self.max_bad * report.rows):
            return
        where = report.files[0] if len(report.files) == 1 else f"{len(report.files)} files"
        shown = _shown_reasons(report)
        fix = "mend the rows, or allow more with --max-bad" if report.good else _hint(self.paths)
        raise RolloutError(
            f"{report.bad} of {report.rows} rows are bad: {shown}",
            where=where,
            expected=f"at most {self.max_bad:.4g} of the rows" if report.good else "rollout rows",
            fix=fix,
        )


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


def read_failures(path: Path | str) -> Iterator[Rollout]:
    """The failed episodes recorded beside `path`, as unscored rollouts; none when there is no such file."""
    beside = failures_beside(Path(path))
    if beside is None:
        return
    with open_file(beside) as file:
        for line_number, line in enumerate(file, 1):
            if line.isspace():
                continue
            source = Source(str(beside), line_number)
            try:
                yield _failed_rollout(decode_row(line, msgspec.json.decode), source)
            except RolloutError as error:
                yield _failed_rollout({"_ng_failure_class": "unreadable", "_ng_failure_message": str(error)}, source)


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


def checked_paths(paths: Paths) -> list[Path]:
    """The paths as a list; `UsageError` where one is missing, a folder, or given twice."""
    listed = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not listed:
        raise UsageError("no rollout file was given", expected="the path of a rollouts.jsonl")
    for number, path in enumerate(listed):
        if path.is_dir():
            raise UsageError("is a folder", where=str(path), expected="a rollout file (JSON lines)")
        if not path.exists():
            raise UsageError("no such file", where=str(path), expected="a rollout file (JSON lines)")
        if path in listed[:number]:
            raise UsageError("the file is given twice", where=str(path), fix="name each file once")
    return listed


def open_file(path: Path) -> BinaryIO:
    """Open for reading; what the system refuses becomes a `UsageError`."""
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None


def first_line(line: bytes, path: Path) -> bytes:
    """The first line without a byte order mark; raises for files that are known to be something else."""
    line = line.removeprefix(BYTE_ORDER_MARK)
    if line.startswith(LFS_POINTER):
        raise RolloutError(
            "the file is a Git LFS pointer, not the data",
            where=str(path),
            fix="run `git lfs pull` in its repository, or download the file itself",
        )
    if _begins_list(line):
        raise RolloutError(
            "the file begins with a JSON list",
            where=str(path),
            expected="one JSON object per line",
            fix="aggregate metrics are not rollouts; a list of rows must be written one row per line",
        )
    return line


def _begins_list(line: bytes) -> bool:
    """Whether the file is one JSON list of objects, on one line or on many; a log line in brackets is not."""
    if not line.lstrip().startswith(b"["):
        return False
    if line.strip() == b"[":
        return True
    try:
        msgspec.json.decode(line, type=list[dict[str, Any]])
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def decode_row(line: bytes, decode: Any) -> Any:
    """Decode one line. The slower parser is asked only when the fast one refuses: it takes NaN, and says why not."""
    try:
        return decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else " (the last line has no end: the writer may have been stopped)"
        raise RolloutError(f"not JSON: {error.msg} at character {error.pos + 1}{cut}") from None
    except UnicodeDecodeError as error:
        raise RolloutError(f"not UTF-8 text: {error.reason} at byte {error.start + 1}") from None
    except (RecursionError, ValueError) as error:
        raise RolloutError(f"not readable JSON: {error}") from None


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _shown_reasons(report: ReadReport) -> str:
    """The first reasons with their counts, and where the first bad row stands."""
    first = f", first at line {report.first_bad.line}" if report.first_bad else ""
    if len(report.files) > 1 and report.first_bad:
        first = f", first at {report.first_bad}"
    shown = [f"{reason} ({count} rows)" if count > 1 else reason for reason, count in list(report.reasons.items())[:3]]
    return " / ".join(shown) + (" / …" if len(report.reasons) > 3 else "") + first


def _empty(path: Path, report: ReadReport) -> RegimenError:
    failed = ", ".join(f"{name}: {count}" for name, count in report.failures.items())
    return RolloutError(
        "the file holds no rows" + (f"; its failures file holds only failed episodes ({failed})" if failed else ""),
        where=str(path),
        fix="collect again, or name the file that holds the rollouts",
    )


def _hint(paths: Sequence[Path]) -> str:
    if any(path.stem.endswith(MATERIALIZED) for path in paths):
        return "these are task rows; name the rollouts file beside them"
    if any(path.stem.endswith(FAILURES) for path in paths):
        return "these are failed episodes; name the rollouts file beside them"
    return "name a file of rollouts, one JSON object per line with responses_create_params, response and reward"

"""What a reading found: the counts, the rows set aside, and the verdict at its end.

In: good and bad rows as they are met. Out: a `ReadReport` and the quarantine file.
Refuses, with `RolloutError`: files with more bad rows than allowed, and files without rows.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from regimen.errors import RolloutError, UsageError
from regimen.rollouts.records import Source
from regimen.rollouts.siblings import FAILURES, MATERIALIZED
from regimen.rollouts.writer import JsonLinesWriter, refuse_existing

REASONS_KEPT = 20


class BadRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row that could not be read: one line of the quarantine file.

    `text` is the line without its newline. Where the line is no UTF-8, `base64` holds its bytes and `text` shows them.
    """

    file: str
    line: int
    reason: str
    text: str
    base64: str | None = None

    @property
    def bytes(self) -> bytes:
        """The line as it was, without its newline."""
        return self.text.encode() if self.base64 is None else base64.b64decode(self.base64)


def bad_row(line: bytes, source: Source, reason: str) -> BadRow:
    """A line that could not be read, with its bytes."""
    body = line.removesuffix(b"\n")
    try:
        return BadRow(source.path, source.line, reason, body.decode())
    except UnicodeDecodeError:
        shown, kept = body.decode(errors="backslashreplace"), base64.b64encode(body).decode()
        return BadRow(source.path, source.line, reason, shown, kept)


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


class Account:
    """Keeps a `ReadReport`, and the quarantine file, while files are read."""

    def __init__(self, files: Sequence[Path], quarantine: Path | str | None, max_bad: float, overwrite: bool) -> None:
        if not 0 <= max_bad <= 1:
            raise UsageError(f"is {max_bad!r}", where="--max-bad", expected="a share from 0 to 1")
        self.files = list(files)
        self.max_bad = max_bad
        self.report = ReadReport()
        self._overwrite = overwrite
        self._quarantine = Path(quarantine) if quarantine is not None else None
        self._writer: JsonLinesWriter | None = None
        if self._quarantine is not None:
            refuse_existing(self._quarantine, overwrite)

    def begin(self) -> None:
        """Start counting anew."""
        self.report = ReadReport(files=[str(path) for path in self.files])

    def set_aside(self, bad: BadRow) -> None:
        """Count a bad row with its reason and write it to the quarantine file. `rows` is not counted here."""
        report = self.report
        report.bad += 1
        report.first_bad = report.first_bad or Source(bad.file, bad.line)
        if bad.reason in report.reasons or len(report.reasons) < REASONS_KEPT:
            count(report.reasons, bad.reason)
        if self._quarantine is None:
            return
        if self._writer is None:
            self._writer = JsonLinesWriter(self._quarantine.with_name(f".{self._quarantine.name}.{os.getpid()}.tmp"))
        self._writer.write(bad)

    def close(self) -> None:
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

    def check_rows(self, path: Path, rows_before: int) -> None:
        """Raise when a file had no rows; `rows_before` is the count before it was read."""
        if self.report.rows > rows_before:
            return
        failed = ", ".join(f"{name}: {number}" for name, number in self.report.failures.items())
        raise RolloutError(
            "the file holds no rows" + (f"; its failures file holds only failed episodes ({failed})" if failed else ""),
            where=str(path),
            fix="collect again, or name the file that holds the rollouts",
        )

    def judge(self) -> None:
        """Raise when too many rows were bad."""
        report = self.report
        if not report.bad or (report.good and report.bad <= self.max_bad * report.rows):
            return
        where = report.files[0] if len(report.files) == 1 else f"{len(report.files)} files"
        fix = "mend the rows, or allow more with --max-bad" if report.good else _hint(self.files)
        raise RolloutError(
            f"{report.bad} of {report.rows} rows are bad: {_shown_reasons(report)}",
            where=where,
            expected=f"at most {self.max_bad:.4g} of the rows" if report.good else "rollout rows",
            fix=fix,
        )


def count(counts: dict[str, int], name: str, number: int = 1) -> None:
    """Add to one of several counts."""
    counts[name] = counts.get(name, 0) + number


def _shown_reasons(report: ReadReport) -> str:
    """The first reasons with their counts, and where the first bad row stands."""
    first = f", first at line {report.first_bad.line}" if report.first_bad else ""
    if len(report.files) > 1 and report.first_bad:
        first = f", first at {report.first_bad}"
    shown = [f"{reason} ({times} rows)" if times > 1 else reason for reason, times in list(report.reasons.items())[:3]]
    return " / ".join(shown) + (" / …" if len(report.reasons) > 3 else "") + first


def _hint(paths: Sequence[Path]) -> str:
    if any(MATERIALIZED in path.name for path in paths):
        return "these are task rows; name the rollouts file beside them"
    if any(FAILURES in path.name for path in paths):
        return "these are failed episodes; name the rollouts file beside them"
    return "name a file of rollouts, one JSON object per line with responses_create_params, response and reward"

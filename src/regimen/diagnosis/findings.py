"""What a finding is, and how rows with a problem are counted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable

import msgspec

from regimen.diagnosis.codes import CODES, ORDER, Severity
from regimen.rollouts.records import Source


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One problem: how many rows (or tasks) have it, where one stands, what it means, what to do.

    An error makes training on these rewards pointless; a warning costs quality; a note is good to know.
    """

    code: str
    severity: Severity
    count: int
    message: str
    fix: str
    example: Source | None = None


def finding(
    code: str,
    count: int,
    message: str,
    *,
    severity: Severity | None = None,
    fix: str | None = None,
    example: Source | None = None,
) -> Finding:
    """A finding with the severity and the fix of its code, unless others are given."""
    known = CODES[code]
    return Finding(
        code=code,
        severity=severity or known.severity,
        count=count,
        message=message,
        fix=fix or known.fix,
        example=example,
    )


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, the gravest first."""
    return sorted(findings, key=lambda found: ORDER.index(found.severity))


class Tally:
    """Counts the rows with a problem and remembers the first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, Source] = {}

    def note(self, code: str, source: Source) -> None:
        """Count one row."""
        self.counts[code] += 1
        self.examples.setdefault(code, source)

    def finding(self, code: str, message: str, *, severity: Severity | None = None) -> list[Finding]:
        """The finding, when any row has the problem; `{n}` in the message becomes the number of rows."""
        count = self.counts[code]
        if not count:
            return []
        text = message.replace("{n}", num_rows(count))
        return [finding(code, count, text, severity=severity, example=self.examples.get(code))]


def num_rows(count: int) -> str:
    """ "1 row", "2 rows"."""
    return f"{count} row{'s' * (count != 1)}"


class Places:
    """Where each row stands, in 8 bytes a row; rows are numbered in the order they are added."""

    def __init__(self) -> None:
        self._paths: dict[str, int] = {}
        self._files, self._lines = array("I"), array("I")

    def add(self, source: Source) -> None:
        """Take the next row."""
        self._files.append(self._paths.setdefault(source.path, len(self._paths)))
        self._lines.append(source.line)

    def at(self, row: int) -> Source:
        """Where the row with this number stands."""
        return Source(list(self._paths)[self._files[row]], self._lines[row])

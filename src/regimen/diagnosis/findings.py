"""What a finding is, and how rows with a problem are counted."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from regimen.rollouts.records import Source

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


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


class Tally:
    """Counts the rows with a problem and remembers the first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, Source] = {}

    def note(self, code: str, source: Source) -> None:
        """Count one row."""
        self.counts[code] += 1
        self.examples.setdefault(code, source)

    def finding(self, code: str, severity: Severity, message: str, fix: str) -> list[Finding]:
        """The finding, when any row has the problem; `{n}` in the message becomes the number of rows."""
        count = self.counts[code]
        if not count:
            return []
        text = message.replace("{n}", f"{count} row{'s' * (count != 1)}")
        return [
            Finding(code=code, severity=severity, count=count, message=text, fix=fix, example=self.examples.get(code))
        ]


def finding(code: str, severity: Severity, count: int, message: str, fix: str) -> Finding:
    """A finding about the whole set."""
    return Finding(code=code, severity=severity, count=count, message=message, fix=fix)

"""From bytes to lines, and from a line to a row.

In: an open file. Out: its lines with their ends, one at a time, and the JSON value of a line.
Refuses: files that begin as something else (Git LFS pointers, JSON lists). A line beyond `LONGEST_LINE` is never held
whole: it comes out as a `LongLine`, which is a bad row.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from regimen.errors import RolloutError

LONGEST_LINE = 256 << 20
KEPT_OF_LONG_LINE = 1 << 20
# Python reads and writes no longer whole numbers, unless it was told to.
MOST_DIGITS = sys.int_info.default_max_str_digits
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LongLine(bytes):
    """The beginning of a line that is too long to be read; `size` is the length of the whole line."""

    size: int

    @property
    def reason(self) -> str:
        """Why such a line is a bad row."""
        return (
            f"the line has {self.size} bytes, of which the first {len(self)} are kept here; "
            f"expected at most {LONGEST_LINE} bytes"
        )


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, each with its newline where it has one."""
    for line in iter(partial(file.readline, LONGEST_LINE + 1), b""):
        yield line if len(line) <= LONGEST_LINE else _long_line(line, file)


def _long_line(line: bytes, file: BinaryIO) -> LongLine:
    kept, size = LongLine(line[:KEPT_OF_LONG_LINE]), len(line)
    while line and not line.endswith(b"\n"):
        line = file.readline(KEPT_OF_LONG_LINE)
        size += len(line)
    kept.size = size
    return kept


def line_size(line: bytes) -> int:
    """The bytes that a line takes in its file."""
    return len(line) if type(line) is bytes else cast("LongLine", line).size


def is_blank(line: bytes) -> bool:
    """Whether a line holds white space only."""
    if isinstance(line, LongLine):
        return False
    text = line.removeprefix(BYTE_ORDER_MARK)
    return not text or text.isspace()


def check_first_line(line: bytes, path: Path) -> None:
    """Raise for files that are known to be something else."""
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


def _begins_list(line: bytes) -> bool:
    """Whether the file is one JSON list of objects, on one line or on many; a log line in brackets is not."""
    if not line.lstrip().startswith(b"["):
        return False
    if line.strip() == b"[":
        return True
    try:
        msgspec.json.decode(line, type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def decode_row(line: bytes, decode: Callable[[bytes], Any] = msgspec.json.decode) -> Any:
    """Decode one line. The slower parser is asked only when the fast one refuses: it takes NaN, and says why not."""
    if isinstance(line, LongLine):  # its beginning may be whole JSON
        raise RolloutError(line.reason)
    try:
        return decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    try:
        # Surrogates that were encoded one by one are no UTF-8, but many writers produce them.
        text = line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogatepass")
        return json.loads(text, parse_float=_number)
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else " (the last line has no end: the writer may have been stopped)"
        raise RolloutError(f"not JSON: {error.msg} at character {error.pos + 1}{cut}") from None
    except UnicodeDecodeError as error:
        raise RolloutError(f"not UTF-8 text: {error.reason} at byte {error.start + 1}") from None
    except (RecursionError, ValueError) as error:
        raise RolloutError(f"not readable JSON: {error}") from None


def _number(text: str) -> float | int:
    """A number with a point or an exponent; beyond float64 as the whole number that it is."""
    value = float(text)
    if math.isfinite(value):
        return value
    try:
        exact = Decimal(text)
        is_whole = exact.adjusted() < MOST_DIGITS and exact == exact.to_integral_value()
    except ArithmeticError:  # the exponent is beyond decimal arithmetic too
        exact, is_whole = Decimal(0), False
    if not is_whole:
        raise ValueError(f"a number is too large ({text[:40]})")
    return int(exact)

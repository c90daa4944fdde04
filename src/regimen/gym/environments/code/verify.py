"""The code in an answer, and whether what its function returned is what was expected.

In: the text of an answer; what the sandbox's calls gave. Out: the source code, or None; equality of JSON values.
Numbers are equal by value, but true is not 1; floats may differ in the ninth digit.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

MAX_CODE = 20_000  # characters


def code_of(text: str, function: str) -> str | None:
    """The last closed code block that defines `function`; None where there is none, or where it is too long."""
    defines = re.compile(rf"^(?:async\s+)?def\s+{re.escape(function)}\s*\(", re.MULTILINE)
    found = [block for block in _blocks(text) if len(block) <= MAX_CODE and defines.search(block)]
    return found[-1] if found else None


def _blocks(text: str) -> list[str]:
    """What stands between the fences of `text`."""
    blocks: list[str] = []
    opened: list[str] | None = None
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            if opened is None:
                opened = []
            else:
                blocks.append("\n".join(opened) + "\n")
                opened = None
        elif opened is not None:
            opened.append(line)
    return blocks


def equal(found: Any, expected: Any) -> bool:
    """Whether two JSON values are the same."""
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None:
        return found is expected
    if isinstance(expected, int | float):
        return isinstance(found, int | float) and _same_number(found, expected)
    if isinstance(expected, str):
        return found == expected
    if isinstance(expected, list):
        items = cast("list[Any]", expected)
        given = cast("list[Any]", found) if isinstance(found, list) else None
        return given is not None and len(given) == len(items) and all(map(equal, given, items))
    if not isinstance(found, dict):
        return False
    entries, others = cast("dict[str, Any]", expected), cast("dict[str, Any]", found)
    return entries.keys() == others.keys() and all(equal(others[key], entries[key]) for key in entries)


def _same_number(found: float, expected: float) -> bool:
    if isinstance(found, int) and isinstance(expected, int):
        return found == expected
    try:
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
    except OverflowError:  # a whole number that no float holds
        return False

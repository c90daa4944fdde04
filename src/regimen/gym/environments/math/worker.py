"""Tells whether two answers are the same mathematics, by the library math-verify. A script of `gym/worker.py`.

In: requests `{"gold": ..., "answer": ...}`. Out: `{"equal", "read"}`, or `{"failure"}` where the gold answer cannot be
read.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

MAX_DIGITS = 5000.0
PLACES = 6
SMALL = 1e-3


def judge(gold: str, answer: str) -> dict[str, Any]:
    """Whether `answer` says the same as `gold`, both LaTeX or plain mathematics."""
    expected = _parsed(gold)
    if not expected:
        return {"failure": f"the ground truth {gold[:200]!r} cannot be read as mathematics"}
    found = _parsed(answer)
    if not found:
        return {"equal": False, "read": False}
    if max(map(num_digits, found)) > MAX_DIGITS >= max(map(num_digits, expected)):
        return {"equal": False, "read": True}
    return _compared(expected, found)


def _compared(expected: list[Any], found: list[Any]) -> dict[str, Any]:
    try:
        equal = _library("math_verify").verify(
            expected, found, float_rounding=_places([*expected, *found]), timeout_seconds=None, raise_on_error=True
        )
    except (MemoryError, RecursionError) as error:
        return {"failure": f"comparing failed with {type(error).__name__}"}
    except Exception:  # the library compares by many ways, some of which end so for what is not equal
        equal = False
    return {"equal": bool(equal), "read": True}


def _places(values: list[Any]) -> int:
    """Decimal places to compare: six, or six digits of a number so small that six places would make it 0."""
    sympy = _library("sympy")
    small = [abs(v) for v in values if isinstance(v, sympy.Number) and v.is_finite and 0 < abs(v) < SMALL]
    return PLACES - math.floor(math.log10(min(small))) if small else PLACES


@functools.lru_cache(maxsize=4096)  # every answer of a group is compared with the same gold answer
def _parsed(text: str) -> list[Any]:
    """The expressions in `text`; [] where it cannot be read."""
    library = _library("math_verify")
    config = library.LatexExtractionConfig(boxed_match_priority=0)
    try:
        found: list[Any] = library.parse(f"\\boxed{{{text}}}", [config], parsing_timeout=None, raise_on_error=True)
    except (Exception, RecursionError, MemoryError):
        return []
    return [value for value in found if not isinstance(value, str)]


def num_digits(value: Any) -> float:
    """A bound on the decimal digits of the numbers in an expression, found without computing them."""
    sympy = _library("sympy")
    if isinstance(value, sympy.Integer):
        return abs(int(value)).bit_length() * math.log10(2)
    if isinstance(value, sympy.Rational):
        return num_digits(value.numerator) + num_digits(value.denominator)
    if value is sympy.E:
        return math.log10(math.e)
    if isinstance(value, (sympy.Pow, sympy.exp)):
        base, exponent = value.as_base_exp()
        return max(1.0, _size(exponent)) * num_digits(base)
    parts = [num_digits(argument) for argument in getattr(value, "args", ())]
    if isinstance(value, (sympy.factorial, sympy.gamma)):
        return _size(value.args[0]) * parts[0]
    return sum(parts) if isinstance(value, (sympy.Mul, sympy.Add)) else max(parts, default=1.0)


def _size(value: Any) -> float:
    """About how large a number is, at least, if it is written as one; a bound for others."""
    sympy = _library("sympy")
    digits = num_digits(value)
    exact = isinstance(value, sympy.Rational) and digits < 15
    return abs(float(value)) if exact else 10.0 ** min(digits, 300.0)


def _library(name: str) -> Any:
    """A library without types, loaded when it is first used."""
    return importlib.import_module(name)


def prepare() -> None:
    """Load the libraries, off the clock."""
    judge("1", "1")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The judgement of one request."""
    return judge(request["gold"], request["answer"])

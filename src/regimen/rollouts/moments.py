"""Distributions in five numbers, taken while values stream by.

In: numbers, one at a time or all together. Out: `Summary`. At most `CHUNK` values stay in memory.
Standard deviations are of the population, in float64.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import msgspec
import numpy as np

CHUNK = 4096


class Summary(msgspec.Struct, frozen=True):
    """A distribution in five numbers; all zero when `count` is 0."""

    count: int
    mean: float
    sd: float
    min: float
    max: float


class Moments:
    """Takes numbers with `add`, gives their `Summary`."""

    __slots__ = ("_total", "_values")

    def __init__(self) -> None:
        self._values = array("d")
        self._total = Summary(0, 0.0, 0.0, 0.0, 0.0)

    def add(self, value: float) -> None:
        """Take one number."""
        self._values.append(value)
        if len(self._values) >= CHUNK:
            self._total = merged(self._total, summarize(self._values))
            self._values = array("d")

    def summary(self) -> Summary:
        """The distribution of everything added so far."""
        return merged(self._total, summarize(self._values))


def summarize(values: Any) -> Summary:
    """Count, mean, population standard deviation, least and greatest of some numbers."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return Summary(0, 0.0, 0.0, 0.0, 0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:  # the mean of equal numbers may round away from them
        return Summary(len(numbers), low, 0.0, low, high)
    # Squares of values beyond 1e150 do not fit; a power of two as unit changes no digit of the others.
    unit = 2.0**1000 if max(-low, high) > 1e150 else 1.0
    scaled = numbers / unit
    return Summary(len(numbers), float(scaled.mean()) * unit, float(scaled.std()) * unit, low, high)


def merged(first: Summary, second: Summary) -> Summary:
    """The summary of two sets of numbers together, from their summaries."""
    if not first.count or not second.count:
        return first if first.count else second
    count = first.count + second.count
    low, high = min(first.min, second.min), max(first.max, second.max)
    if low == high:
        return Summary(count, low, 0.0, low, high)
    share = second.count / count
    mean = first.mean + (second.mean - first.mean) * share
    # Between the two means lies what neither standard deviation holds; hypot keeps great values from overflowing.
    between = abs(second.mean - first.mean) * math.sqrt(share * (1 - share))
    sd = math.hypot(first.sd * math.sqrt(1 - share), second.sd * math.sqrt(share), between)
    return Summary(count, mean, sd, low, high)

"""Student's t, and confidence intervals for the mean of one number per task.

In: one number per task (its mean over repeats). Out: an `Interval`, and the method that gave it.
Tasks, not rollouts, are the independent draws: with one number per task, the standard error s / sqrt(n) is the
cluster-robust standard error of Miller, "Adding Error Bars to Evals" (2024), section 2.2, with the n / (n - 1)
correction; it holds for unequal repeats too, where every task weighs the same. No zero-width interval comes out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Method = Literal["t", "wilson", "agresti-min", "none"]

CONFIDENCE = 0.95


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A two-sided confidence interval; `low` and `high` are None when the data allow none (method "none")."""

    low: float | None
    high: float | None
    standard_error: float | None
    method: Method

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


NO_INTERVAL = Interval(low=None, high=None, standard_error=None, method="none")


def mean_of(values: Sequence[float]) -> float:
    """The arithmetic mean, summed exactly (`math.fsum`)."""
    return math.fsum(values) / len(values)


def standard_error_of(values: Sequence[float]) -> float:
    """Of the mean: sqrt(sum((x - mean)^2) / (n (n - 1))); needs two values."""
    mean, count = mean_of(values), len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count * (count - 1)))


def mean_interval(values: Sequence[float], *, is_unit: bool, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of `values`, one per task: mean ± t(n - 1) s / sqrt(n).

    With `is_unit` the values are shares (0 to 1): where the symmetric interval would reach 0 or 1, or has no width,
    Wilson's takes its place. Other values that are all equal, or a single value, have no interval.
    """
    if len(values) < 2:
        return NO_INTERVAL
    mean, error = mean_of(values), standard_error_of(values)
    half = student_t_quantile((1 + confidence) / 2, len(values) - 1) * error
    if is_unit and (is_negligible(error, values) or mean - half <= 0 or mean + half >= 1):
        return wilson_interval(mean, error, len(values), confidence)
    if is_negligible(error, values):
        return NO_INTERVAL
    return Interval(low=mean - half, high=mean + half, standard_error=error, method="t")


def is_negligible(error: float, values: Sequence[float]) -> bool:
    """Whether a standard error is only rounding: all values are equal."""
    return error <= 1e-12 * max(1.0, max(abs(value) for value in values))


def wilson_interval(mean: float, error: float, num_tasks: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval with t for z and the effective sample mean (1 - mean) / error^2, at most `num_tasks`.

    With every task at 1 it is [n / (n + t^2), 1].
    """
    t = student_t_quantile((1 + confidence) / 2, num_tasks - 1)
    variance = mean * (1 - mean)
    effective = min(num_tasks, variance / error**2) if error > 0 and variance > 0 else num_tasks
    scale = 1 + t * t / effective
    centre = (mean + t * t / (2 * effective)) / scale
    half = t / scale * math.sqrt(max(0.0, variance) / effective + t * t / (4 * effective**2))
    # At 0 and at 1 the ends are exact; elsewhere rounding must not push them out of the range.
    low = 0.0 if mean <= 0 else max(0.0, centre - half)
    high = 1.0 if mean >= 1 else min(1.0, centre + half)
    return Interval(low=low, high=high, standard_error=error, method="wilson")


def paired_interval(differences: Sequence[float], *, is_binary: bool, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean difference, one difference per task: a t interval.

    With binary rewards and fewer than ten tasks that differ (or all by the same), t is overconfident: then the
    interval of Agresti and Min (2005), which adds half a task to each cell of the table of wins and losses.
    Other differences that are all equal, or a single one, have no interval.
    """
    if len(differences) < 2:
        return NO_INTERVAL
    error = standard_error_of(differences)
    no_spread = is_negligible(error, differences)
    if is_binary and (no_spread or sum(difference != 0 for difference in differences) < 10):
        return agresti_min_interval(differences, confidence)
    if no_spread:
        return NO_INTERVAL
    half = student_t_quantile((1 + confidence) / 2, len(differences) - 1) * error
    mean = mean_of(differences)
    low, high = mean - half, mean + half
    if is_binary:
        low, high = max(-1.0, low), min(1.0, high)
    return Interval(low=low, high=high, standard_error=error, method="t")


def agresti_min_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """A t interval after adding two tasks: half a win (+1), half a loss (-1) and one tie."""
    count = len(differences) + 2
    mean = math.fsum(differences) / count
    squares = math.fsum(difference**2 for difference in differences) + 1
    error = math.sqrt(squares - count * mean**2) / count
    half = student_t_quantile((1 + confidence) / 2, len(differences) - 1) * error
    return Interval(low=max(-1.0, mean - half), high=min(1.0, mean + half), standard_error=error, method="agresti-min")


@functools.cache
def student_t_quantile(probability: float, degrees: int) -> float:
    """The x with P(T <= x) = `probability`, T of Student's distribution with `degrees` of freedom."""
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"no t quantile for probability {probability} and {degrees} degrees of freedom")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_t_distribution(high, degrees) < probability:
        low, high = high, high * 2
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        if student_t_distribution(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def student_t_distribution(x: float, degrees: int) -> float:
    """P(T <= x): 1 - I(degrees / (degrees + x^2); degrees / 2, 1 / 2) / 2 for x >= 0."""
    tail = incomplete_beta(degrees / (degrees + x * x), degrees / 2, 0.5) / 2
    return 1 - tail if x >= 0 else tail


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I(x; a, b), by its continued fraction."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # The fraction converges fast below the distribution's bulk; above it, the symmetry 1 - I(1 - x; b, a) helps.
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _beta_fraction(x, a, b) / a
    return 1 - math.exp(log_front) * _beta_fraction(1 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Lentz's evaluation of the continued fraction of I(x; a, b) (Abramowitz and Stegun, 26.5.8)."""
    tiny = 1e-300
    c, d = 1.0, 1 / (_away_from_zero(1 - (a + b) * x / (a + 1), tiny))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d, tiny)
            c = _away_from_zero(1 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny

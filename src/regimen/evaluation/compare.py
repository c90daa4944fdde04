"""Is a model better than another? The paired difference on the tasks that both were scored on.

In: the observations of two models. Out: a `Comparison`: mean over tasks of the difference of task means, its 95%
interval (`intervals.paired_interval`), wins, ties and losses, and a verdict, "not distinguishable" where it isn't.
Refuses, with `UsageError`: no task in common, or tasks of the same name that ask different things.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from regimen.errors import UsageError
from regimen.evaluation.intervals import Interval, mean_of, paired_interval
from regimen.evaluation.metrics import Observation, is_binary_reward, rewards_by_task

Verdict = Literal["better", "worse", "not distinguishable"]

# Differences of task means below this are rounding, and count as ties.
TIE = 1e-9


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A model against a base. `wins` are common tasks on which the model's mean reward is higher.

    `mean` and `base_mean` are over the common tasks; `num_only_model` and `num_only_base` tasks were scored on one
    side alone and are not in the comparison.
    """

    label: str
    against: str
    difference: float
    interval: Interval
    verdict: Verdict
    mean: float
    base_mean: float
    num_tasks: int
    num_only_model: int
    num_only_base: int
    wins: int
    ties: int
    losses: int


def compare(
    model: Iterable[Observation], base: Iterable[Observation], *, label: str = "model", against: str = "base"
) -> Comparison:
    """Compare `model` with `base` on their common tasks."""
    model, base = list(model), list(base)
    ours, theirs = rewards_by_task(model), rewards_by_task(base)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise UsageError(
            f"{label} and {against} have no scored task in common",
            expected="rollouts of the same tasks",
            fix="evaluate both on the same environment, split and seed",
        )
    _check_questions(model, base, common)
    means, base_means = [mean_of(ours[task]) for task in common], [mean_of(theirs[task]) for task in common]
    differences = [_rounded(a - b) for a, b in zip(means, base_means, strict=True)]
    interval = paired_interval(differences, is_binary=_is_binary(ours, theirs, common))
    return Comparison(
        label=label,
        against=against,
        difference=mean_of(differences),
        interval=interval,
        verdict=verdict_of(mean_of(differences), interval),
        mean=mean_of(means),
        base_mean=mean_of(base_means),
        num_tasks=len(common),
        num_only_model=len(ours) - len(common),
        num_only_base=len(theirs) - len(common),
        wins=sum(difference > 0 for difference in differences),
        ties=sum(difference == 0 for difference in differences),
        losses=sum(difference < 0 for difference in differences),
    )


def verdict_of(difference: float, interval: Interval) -> Verdict:
    """Better or worse only when the interval excludes 0."""
    if not interval.excludes_zero:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


def comparison_text(comparison: Comparison) -> str:
    """One line: `+0.62 [+0.55, +0.69] on 200 tasks (paired)`."""
    tasks = "1 task" if comparison.num_tasks == 1 else f"{comparison.num_tasks} tasks"
    interval = comparison.interval
    if interval.low is None or interval.high is None:
        return f"{comparison.difference:+.2f} (no interval) on {tasks} (paired)"
    return f"{comparison.difference:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] on {tasks} (paired)"


def _rounded(difference: float) -> float:
    return 0.0 if abs(difference) < TIE else difference


def _is_binary(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], common: Sequence[str]
) -> bool:
    return all(is_binary_reward({task: rewards[task] for task in common}) for rewards in (ours, theirs))


def _check_questions(model: Sequence[Observation], base: Sequence[Observation], common: Sequence[str]) -> None:
    ours, theirs = _questions(model), _questions(base)
    different = [task for task in common if task in ours and task in theirs and ours[task] != theirs[task]]
    if different:
        raise UsageError(
            f"{len(different)} of {len(common)} common tasks ask different things on the two sides",
            where=f"task {different[0]}",
            expected="one task behind one task id",
            fix="evaluate both on the same environment, split and seed",
        )


def _questions(rows: Sequence[Observation]) -> dict[str, str]:
    return {row.task_id: row.question for row in rows if row.question is not None}

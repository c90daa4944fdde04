"""How good a model is on a set of tasks: mean reward, pass@k and the verifier's metrics, with intervals.

In: rollouts, as `Observation`s (task, repeat, reward or None, outcome, metrics).
Out: a `Score`. Every mean is the mean over tasks of the task's mean over its repeats, so each task weighs the same;
its 95% interval is clustered by task (`intervals.py`). Rollouts without a reward are counted by outcome and enter
no mean: a failure is never a zero. Truncated rollouts with a reward enter the means and are counted apart too.
Refuses: nothing to score (no rollouts at all), and k below 1.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from regimen.errors import UsageError, WorkError
from regimen.evaluation.intervals import CONFIDENCE, Interval, mean_interval, mean_of
from regimen.rollouts.messages import input_messages
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Rollout


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What evaluation needs of a rollout. `question` is a digest of what was asked, to tell tasks apart."""

    task_id: str
    reward: float | None
    rollout_index: int | None = None
    outcome: Outcome = Outcome.OK
    metrics: Mapping[str, float] = {}
    question: str | None = None


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over tasks with its interval; `num_rollouts` are those it rests on."""

    mean: float
    interval: Interval
    num_tasks: int
    num_rollouts: int


class PassAtK(msgspec.Struct, frozen=True, kw_only=True):
    """The chance that at least one of k answers passes. `num_tasks_left_out` have fewer than k scored repeats."""

    k: int
    estimate: Estimate
    num_tasks_left_out: int


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How good one model is. `reward` is None when no rollout was scored.

    `num_rollouts` = `num_scored` + `num_failed`; `num_truncated` says how many of all were cut off.
    `num_tasks_unscored` of the `num_tasks` have no scored rollout at all.
    """

    label: str
    reward: Estimate | None
    pass_at_k: list[PassAtK]
    metrics: dict[str, Estimate]
    outcomes: dict[str, int]
    num_rollouts: int
    num_scored: int
    num_failed: int
    num_truncated: int
    num_tasks: int
    num_tasks_unscored: int
    is_binary: bool
    pass_threshold: float
    confidence: float = CONFIDENCE


def observation_of(rollout: Rollout) -> Observation:
    """The observation that a rollout makes; reward components become metrics named `component/<name>`."""
    components = {f"component/{name}": value for name, value in rollout.components.items()}
    return Observation(
        task_id=rollout.task_id,
        rollout_index=rollout.rollout_index,
        reward=rollout.reward,
        outcome=rollout.outcome,
        metrics={**rollout.metrics, **components},
        question=_question(rollout),
    )


def _question(rollout: Rollout) -> str | None:
    """A digest of the last user message of the prompt; None where the prompt is missing."""
    if not rollout.params:
        return None
    asked = [message["content"] for message in input_messages(rollout.params) if message["role"] == "user"]
    return hashlib.blake2b(asked[-1].encode(), digest_size=8).hexdigest() if asked else None


def score(
    observations: Iterable[Observation], *, label: str = "model", ks: Sequence[int] = (), pass_threshold: float = 1.0
) -> Score:
    """Score a model. `ks` empty means 1, 2, 4, ... up to the largest number of scored repeats of a task."""
    rows = list(observations)
    if not rows:
        raise WorkError("there are no rollouts to evaluate", where=label, expected="at least one rollout")
    rewards = rewards_by_task(rows)
    outcomes = Counter(row.outcome.value for row in rows)
    num_scored = sum(len(values) for values in rewards.values())
    num_tasks = len({row.task_id for row in rows})
    is_binary = bool(rewards) and is_binary_reward(rewards)
    return Score(
        label=label,
        reward=estimate(rewards, is_unit=is_binary) if rewards else None,
        pass_at_k=[pass_at_k(rewards, k, pass_threshold) for k in _known_ks(rewards, ks)],
        metrics=_metric_means(rows),
        outcomes={outcome.value: outcomes[outcome.value] for outcome in Outcome if outcomes[outcome.value]},
        num_rollouts=len(rows),
        num_scored=num_scored,
        num_failed=len(rows) - num_scored,
        num_truncated=outcomes[Outcome.TRUNCATED.value],
        num_tasks=num_tasks,
        num_tasks_unscored=num_tasks - len(rewards),
        is_binary=is_binary,
        pass_threshold=pass_threshold,
    )


def rewards_by_task(rows: Iterable[Observation]) -> dict[str, list[float]]:
    """The rewards of each task's scored rollouts, in the order of the rows; tasks without one are absent."""
    grouped: dict[str, list[float]] = {}
    for row in rows:
        if row.reward is not None:
            grouped.setdefault(row.task_id, []).append(row.reward)
    return grouped


def is_binary_reward(rewards: Mapping[str, Sequence[float]]) -> bool:
    """Whether every reward is 0 or 1."""
    return all(value in (0.0, 1.0) for values in rewards.values() for value in values)


def estimate(values: Mapping[str, Sequence[float]], *, is_unit: bool) -> Estimate:
    """The mean over tasks of the task means, with its interval."""
    means = [mean_of(task) for task in values.values()]
    return Estimate(
        mean=mean_of(means),
        interval=mean_interval(means, is_unit=is_unit),
        num_tasks=len(means),
        num_rollouts=sum(len(task) for task in values.values()),
    )


def pass_at_k(rewards: Mapping[str, Sequence[float]], k: int, threshold: float = 1.0) -> PassAtK:
    """The unbiased estimator 1 - C(n - c, k) / C(n, k) (Chen et al. 2021), averaged over tasks with n >= k."""
    enough = {task: values for task, values in rewards.items() if len(values) >= k}
    if k < 1 or not enough:
        raise UsageError(f"no task has {k} scored rollouts", expected="1 <= k <= repeats", fix="collect more repeats")
    chances: dict[str, list[float]] = {}
    for task, values in enough.items():
        num_passed = sum(value >= threshold for value in values)
        chances[task] = [pass_chance(len(values), num_passed, k)]
    found = estimate(chances, is_unit=True)
    num_rollouts = sum(len(values) for values in enough.values())
    return PassAtK(
        k=k,
        estimate=msgspec.structs.replace(found, num_rollouts=num_rollouts),
        num_tasks_left_out=len(rewards) - len(enough),
    )


def pass_chance(num_answers: int, num_passed: int, k: int) -> float:
    """The chance that k of `num_answers` answers, drawn without putting back, hold one of the `num_passed`."""
    return 1 - math.comb(num_answers - num_passed, k) / math.comb(num_answers, k)


def _known_ks(rewards: Mapping[str, Sequence[float]], ks: Sequence[int]) -> list[int]:
    if ks or not rewards:
        return sorted(set(ks)) if rewards else []
    return usual_ks(max(len(values) for values in rewards.values()))


def usual_ks(num_repeats: int) -> list[int]:
    """1, 2, 4, ... up to the number of repeats, and that number."""
    return sorted({2**power for power in range(num_repeats.bit_length())} | {num_repeats})


def _metric_means(rows: Sequence[Observation]) -> dict[str, Estimate]:
    grouped: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.reward is None:
            continue
        for name, value in row.metrics.items():
            grouped.setdefault(name, {}).setdefault(row.task_id, []).append(value)
    return {name: estimate(tasks, is_unit=_is_share(name, tasks)) for name, tasks in sorted(grouped.items())}


def _is_share(name: str, values: Mapping[str, Sequence[float]]) -> bool:
    """Whether a metric is yes or no; a count (`num_...`) that happens to be 0 or 1 everywhere is not."""
    return not name.startswith("num_") and is_binary_reward(values)

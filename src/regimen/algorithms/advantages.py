"""Advantages of rollouts, relative to the other rollouts of the same task. numpy, float64.

In: one reward for each rollout and the integer identity of its task (not its prompt: two tasks may share one).
Out: one advantage for each rollout. A rollout that was not scored gets 0 and is in no baseline; its reward is not read.
Refuses: columns of different lengths, a scored reward that is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from regimen.errors import ConfigError, PolicyError

EPSILON = 1e-6
# A spread below this share of the largest reward is rounding, not a difference between answers.
ROUNDING = 1e-12

Floats = np.ndarray | Sequence[float]
Integers = np.ndarray | Sequence[int]
Booleans = np.ndarray | Sequence[bool]


class GroupAdvantages(NamedTuple):
    """Three float64 arrays of the length of the rewards; all 0 where a rollout was not scored."""

    advantages: np.ndarray
    baseline: np.ndarray
    std: np.ndarray


def group_advantages(
    rewards: Floats,
    groups: Integers,
    *,
    normalize_rewards: bool = True,
    use_leave_one_out_baseline: bool = True,
    minus_baseline: bool = True,
    scored: Booleans | None = None,
) -> GroupAdvantages:
    """`r - baseline`, divided by `std + 1e-6` where there is a spread.

    Baseline and sample standard deviation are those of the task's scored rollouts, without the rollout itself when
    `use_leave_one_out_baseline`. A rollout alone in its group is its own baseline.
    """
    values, identity, valid = _columns(rewards, groups, scored)
    baseline, std = np.zeros_like(values), np.zeros_like(values)
    for rows in _groups(identity, valid):
        baseline[rows], std[rows] = _baselines(values[rows], use_leave_one_out_baseline)
    advantages = np.where(valid, values - baseline, 0.0) if minus_baseline else values.copy()
    if normalize_rewards:
        spread = std > 0
        advantages[spread] /= std[spread] + EPSILON
    return GroupAdvantages(advantages, baseline, std)


def has_variance(rewards: Floats, groups: Integers, *, scored: Booleans | None = None) -> np.ndarray:
    """For each rollout, whether the scored rewards of its group differ; false where it was not scored itself.

    Dynamic sampling keeps whole groups by this, not by a leave-one-out deviation, which is 0 for the only rollout that
    differs from all the others.
    """
    values, identity, valid = _columns(rewards, groups, scored)
    result = np.zeros(len(values), bool)
    for rows in _groups(identity, valid):
        result[rows] = _differs(values[rows])
    return result


def clip_advantages(advantages: Floats, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Clip to `low`..`high`; None leaves that side open."""
    if low is not None and high is not None and low > high:
        raise ConfigError(f"{low:g} is above {high:g}", where="grpo.advantage_clip_low", expected="low below high")
    lower, upper = -np.inf if low is None else low, np.inf if high is None else high
    return np.clip(np.asarray(advantages, np.float64), lower, upper)


def gdpo_advantages(
    components: np.ndarray,
    groups: Integers,
    *,
    weights: Floats | None = None,
    normalize_rewards: bool = True,
    use_leave_one_out_baseline: bool = True,
    scored: Booleans | None = None,
) -> np.ndarray:
    """Weighted sum of the group advantages of each reward component `[B, K]`, whitened over the scored rollouts."""
    table = np.asarray(components, np.float64)
    factors = np.ones(table.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if len(factors) != table.shape[1]:
        raise ConfigError(
            f"{len(factors)} weights for {table.shape[1]} reward components",
            where="grpo.adv_estimator.reward_weights",
            expected="one for each",
        )
    total = np.zeros(len(table))
    for column, factor in zip(table.T, factors, strict=True):
        total += (
            factor
            * group_advantages(
                column,
                groups,
                normalize_rewards=normalize_rewards,
                use_leave_one_out_baseline=use_leave_one_out_baseline,
                scored=scored,
            ).advantages
        )
    valid = np.ones(len(total), bool) if scored is None else np.asarray(scored, bool)
    if not valid.any():
        return total
    mean, std = _moments(total[valid])
    return np.where(valid, (total - mean) / (std if std > 0 else 1.0), 0.0)


def reinforce_plus_plus_advantages(
    rewards: Floats,
    groups: Integers,
    num_trained: Integers,
    *,
    minus_baseline: bool = True,
    whiten: bool = True,
    scored: Booleans | None = None,
) -> np.ndarray:
    """Reward minus group mean, whitened over trained tokens: each rollout counts `num_trained` times.

    `whiten=False` leaves that to the caller, who has token rewards to add first.
    """
    raw = group_advantages(
        rewards,
        groups,
        normalize_rewards=False,
        use_leave_one_out_baseline=False,
        minus_baseline=minus_baseline,
        scored=scored,
    ).advantages
    valid = np.ones(len(raw), bool) if scored is None else np.asarray(scored, bool)
    counts = np.where(valid, np.asarray(num_trained, np.float64), 0.0)
    if counts.sum() == 0:
        return np.zeros_like(raw)
    if not whiten:
        return np.where(valid, raw, 0.0)
    return np.where(valid, whitened(raw, counts), 0.0)


def whitened(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Minus the weighted mean, divided by the weighted deviation of the population, which is taken as at least 1e-4."""
    centred = values - np.average(values, weights=weights)
    deviation = np.sqrt(np.average(centred**2, weights=weights))
    return centred / max(deviation, 1e-4)


def _columns(rewards: Floats, groups: Integers, scored: Booleans | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards (0 where not scored), group identities and the mask, checked."""
    values, identity = np.asarray(rewards, np.float64), np.asarray(groups)
    valid = np.ones(len(values), bool) if scored is None else np.asarray(scored, bool)
    if not len(values) == len(identity) == len(valid):
        raise PolicyError(
            f"{len(values)} rewards, {len(identity)} groups and {len(valid)} scored flags", expected="equal lengths"
        )
    bad = np.flatnonzero(valid & ~np.isfinite(values))
    if len(bad):
        raise PolicyError(
            f"reward {values[bad[0]]}", where=f"rollout {bad[0]}", expected="a finite reward, or scored=False"
        )
    return np.where(valid, values, 0.0), identity, valid


def _groups(identity: np.ndarray, valid: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of the scored rollouts of each group that has any."""
    rows = np.flatnonzero(valid)
    order = rows[np.argsort(identity[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(identity[order])) + 1
    yield from (part for part in np.split(order, starts) if len(part))


def _baselines(rewards: np.ndarray, leave_one_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Baseline and standard deviation for each member of one group."""
    if len(rewards) == 1:
        return rewards, np.zeros(1)
    if not leave_one_out:
        mean, std = _moments(rewards)
        return np.full(len(rewards), mean), np.full(len(rewards), std)
    moments = [_moments(np.delete(rewards, index)) for index in range(len(rewards))]
    return np.array([mean for mean, _ in moments]), np.array([std for _, std in moments])


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation in two passes; exactly the common value and 0 where they do not differ."""
    if not _differs(values):
        return float(values[0]), 0.0
    return float(values.mean()), float(values.std(ddof=1))


def _differs(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())

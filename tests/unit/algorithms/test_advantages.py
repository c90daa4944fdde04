"""Advantages, by hand and by the standard library's statistics."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from regimen.algorithms.advantages import (
    clip_advantages,
    gdpo_advantages,
    group_advantages,
    has_variance,
    reinforce_plus_plus_advantages,
)
from regimen.errors import ConfigError, PolicyError


def test_leave_one_out_by_hand() -> None:
    # Rewards 1, 2, 6. Without 1: mean 4, deviation sqrt(8); without 2: 3.5, sqrt(12.5); without 6: 1.5, sqrt(0.5).
    result = group_advantages([1, 2, 6], [4, 4, 4])
    assert result.baseline.tolist() == [4, 3.5, 1.5]
    assert result.std.tolist() == pytest.approx([math.sqrt(8), math.sqrt(12.5), math.sqrt(0.5)], rel=1e-14)
    assert result.advantages.tolist() == pytest.approx(
        [-3 / (math.sqrt(8) + 1e-6), -1.5 / (math.sqrt(12.5) + 1e-6), 4.5 / (math.sqrt(0.5) + 1e-6)], rel=1e-14
    )


def test_the_whole_group_by_hand() -> None:
    # Mean 3, deviations -2, -1, 3: variance 14 / 2 = 7.
    result = group_advantages([1, 2, 6], [0, 0, 0], use_leave_one_out_baseline=False)
    assert result.baseline.tolist() == [3, 3, 3]
    assert result.std.tolist() == pytest.approx([math.sqrt(7)] * 3)
    assert result.advantages.tolist() == pytest.approx([x / (math.sqrt(7) + 1e-6) for x in (-2, -1, 3)])


def test_switches() -> None:
    plain = group_advantages([1, 2, 6], [0, 0, 0], normalize_rewards=False)
    assert plain.advantages.tolist() == [-3, -1.5, 4.5]
    raw = group_advantages([1, 2, 6], [0, 0, 0], normalize_rewards=False, minus_baseline=False)
    assert raw.advantages.tolist() == [1, 2, 6]
    divided = group_advantages([1, 2, 6], [0, 0, 0], use_leave_one_out_baseline=False, minus_baseline=False)
    assert divided.advantages.tolist() == pytest.approx([x / (math.sqrt(7) + 1e-6) for x in (1, 2, 6)])


def test_one_failure_among_seven_equal_rewards_stays_sane() -> None:
    # Without the 0: seven times 0.95, no spread, so A = -0.95 as it is. Without one 0.95: mean 6 * 0.95 / 7, so
    # r - mean = 0.95 / 7, and the deviation is 0.95 / sqrt(7): A = 1 / sqrt(7).
    result = group_advantages([0.0] + [0.95] * 7, [3] * 8)
    assert result.baseline[0] == 0.95
    assert result.std[0] == 0.0
    assert result.advantages[0] == -0.95
    assert result.advantages[1:].tolist() == pytest.approx([1 / math.sqrt(7)] * 7, rel=1e-5)


@pytest.mark.parametrize("value", [0.95, 0.1, 1 / 3, -1e6 / 7, 0.0])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_equal_rewards_give_exactly_zero(value: float, count: int, leave_one_out: bool) -> None:
    result = group_advantages([value] * count, [0] * count, use_leave_one_out_baseline=leave_one_out)
    assert result.advantages.tolist() == [0.0] * count
    assert result.std.tolist() == [0.0] * count
    assert not has_variance([value] * count, [0] * count).any()


def test_rounding_is_no_spread() -> None:
    # 0.1 + 0.2 is one bit above 0.3: dividing by that deviation would give the other rollout -300000.
    result = group_advantages([0.0, 0.1 + 0.2, 0.3], [0, 0, 0])
    assert result.advantages[0] == pytest.approx(-0.3)


def test_a_group_of_one_and_of_two() -> None:
    # Alone: its own baseline. Two: the baseline is the other; one member has no deviation, so nothing is divided.
    result = group_advantages([5, 1, 4], [9, 2, 2])
    assert result.baseline.tolist() == [5, 4, 1]
    assert result.std.tolist() == [0, 0, 0]
    assert result.advantages.tolist() == [0, -3, 3]


def test_groups_may_be_interleaved() -> None:
    result = group_advantages([1, 10, 2, 30, 6], [8, -1, 8, -1, 8], normalize_rewards=False)
    assert result.advantages.tolist() == [-3, -20, -1.5, 20, 4.5]


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_random_groups_equal_the_standard_library(leave_one_out: bool) -> None:
    rng = random.Random(4)
    groups = [rng.randrange(5) for _ in range(40)]
    rewards = [rng.uniform(-1, 2) for _ in groups]
    scored = [rng.random() < 0.8 for _ in groups]
    result = group_advantages(rewards, groups, use_leave_one_out_baseline=leave_one_out, scored=scored)
    for i, group in enumerate(groups):
        members = [j for j in range(40) if groups[j] == group and scored[j] and not (leave_one_out and j == i)]
        values = [rewards[j] for j in members]
        expected = (rewards[i] - statistics.fmean(values)) / (statistics.stdev(values) + 1e-6) if scored[i] else 0.0
        assert result.advantages[i] == pytest.approx(expected, rel=1e-9)


def test_unscored_rollouts_are_in_no_baseline() -> None:
    # The third failed: its 0 (or nothing at all) must not pull the others' baselines.
    for reward in (0.0, float("nan"), float("inf")):
        result = group_advantages(
            [1, 3, reward, 7], [0, 0, 0, 0], normalize_rewards=False, scored=[True, True, False, True]
        )
        assert result.advantages.tolist() == [1 - 5, 3 - 4, 0, 7 - 2]
        assert result.baseline.tolist() == [5, 4, 0, 2]


def test_a_group_with_nothing_scored_is_zero() -> None:
    result = group_advantages([1, 2, 3], [0, 0, 1], scored=[False, False, True])
    assert result.advantages.tolist() == [0, 0, 0]
    assert group_advantages([], []).advantages.tolist() == []


def test_the_only_rollout_that_differs_keeps_its_group() -> None:
    # Its own leave-one-out deviation is 0, but its group has a spread.
    rewards, groups = [0, 1, 1, 1, 5, 5], [0, 0, 0, 0, 1, 1]
    assert group_advantages(rewards, groups).std[0] == 0
    assert has_variance(rewards, groups).tolist() == [True, True, True, True, False, False]


def test_variance_counts_scored_rollouts_alone() -> None:
    assert has_variance([1, 1, 0], [0, 0, 0], scored=[True, True, False]).tolist() == [False, False, False]
    assert has_variance([1, 2, 0], [0, 0, 0], scored=[True, True, False]).tolist() == [True, True, False]


def test_clipping() -> None:
    values = [-3.0, 0.5, 4.0]
    assert clip_advantages(values).tolist() == values
    assert clip_advantages(values, -1).tolist() == [-1, 0.5, 4]
    assert clip_advantages(values, None, 2).tolist() == [-3, 0.5, 2]
    assert clip_advantages(values, -1, 2).tolist() == [-1, 0.5, 2]
    with pytest.raises(ConfigError, match="advantage_clip_low"):
        clip_advantages(values, 2, 1)


def test_gdpo_by_hand() -> None:
    # Two rollouts of each of two tasks, so nothing is divided within a group. Component 1: -1, 1, 0, 0 (from 0, 1 and
    # 2, 2); component 2: 4, -4, -2, 2. Weights 2 and 0.5: 0, 0, -1, 1. Mean 0, sample variance 2/3.
    components = np.array([[0, 6], [1, 2], [2, 0], [2, 2]], float)
    result = gdpo_advantages(components, [0, 0, 1, 1], weights=[2, 0.5])
    assert result.tolist() == pytest.approx([0, 0, -math.sqrt(1.5), math.sqrt(1.5)])
    assert gdpo_advantages(np.ones((3, 2)), [0, 0, 0]).tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="reward_weights"):
        gdpo_advantages(components, [0, 0, 1, 1], weights=[1.0])


def test_gdpo_leaves_unscored_rollouts_out() -> None:
    components = np.array([[0, 6], [1, 2], [np.nan, np.nan], [2, 0], [2, 2]])
    scored = [True, True, False, True, True]
    result = gdpo_advantages(components, [0, 0, 0, 1, 1], weights=[2, 0.5], scored=scored)
    assert result.tolist() == pytest.approx([0, 0, 0, -math.sqrt(1.5), math.sqrt(1.5)])
    assert gdpo_advantages(components, [0, 0, 0, 1, 1], scored=[False] * 5).tolist() == [0] * 5


def test_reinforce_plus_plus_by_hand() -> None:
    # Rewards 0, 2 | 5: minus the group mean -1, 1, 0, over 3, 1 and 0 tokens (the last is masked away).
    # Token mean (-3 + 1) / 4 = -0.5; centred -0.5, 1.5, 0.5; variance (3 * 0.25 + 2.25) / 4 = 0.75.
    result = reinforce_plus_plus_advantages([0, 2, 5], [0, 0, 1], [3, 1, 0])
    assert result.tolist() == pytest.approx([x / math.sqrt(0.75) for x in (-0.5, 1.5, 0.5)])
    # Without baseline: 0, 2 over 1 and 1 tokens: mean 1, deviation 1.
    raw = reinforce_plus_plus_advantages(
        [0, 2, 9], [0, 0, 1], [1, 1, 4], minus_baseline=False, scored=[True, True, False]
    )
    assert raw.tolist() == [-1, 1, 0]
    assert reinforce_plus_plus_advantages([1, 1], [0, 0], [2, 3]).tolist() == [0, 0]
    assert reinforce_plus_plus_advantages([1, 2], [0, 0], [0, 0]).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_scored_reward_must_be_finite(bad: float) -> None:
    with pytest.raises(PolicyError, match="rollout 1"):
        group_advantages([1, bad], [0, 0])


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(PolicyError, match="equal lengths"):
        group_advantages([1, 2], [0])
    with pytest.raises(PolicyError, match="equal lengths"):
        has_variance([1, 2], [0, 0], scored=[True])

"""Reward shaping, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from regimen.algorithms.rewards import penalize_overlong, penalize_truncated, scale_rewards
from regimen.errors import ConfigError, PolicyError


def test_scaling_clips_then_maps() -> None:
    # -1..3 onto 0..10: 2.5 for each unit from -1; -4 and 9 are clipped first.
    rewards = [-4.0, -1.0, 0.0, 1.0, 3.0, 9.0]
    scaled = scale_rewards(rewards, source_min=-1, source_max=3, target_min=0, target_max=10)
    assert scaled.tolist() == [0, 0, 2.5, 5, 10, 10]


def test_scaling_by_default_clips_to_zero_and_one() -> None:
    assert scale_rewards([-0.5, 0.25, 1.5]).tolist() == [0, 0.25, 1]


def test_scaling_may_turn_the_range_around() -> None:
    assert scale_rewards([0.0, 0.25, 1.0], target_min=1, target_max=-1).tolist() == [1, 0.5, -1]


def test_scaling_leaves_unscored_rewards_and_the_input_alone() -> None:
    rewards = np.array([np.nan, 2.0])
    assert np.isnan(scale_rewards(rewards)[0])
    assert rewards[1] == 2.0


def test_an_empty_source_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="reward_scaling"):
        scale_rewards([1.0], source_min=1, source_max=1)


def test_overlong_answers_are_penalized_linearly() -> None:
    # Limit 100, buffer 20: free up to 80; 85 is 5/20 into it, 100 is 20/20, 110 is 30/20. Penalty 2.
    lengths = [10, 80, 85, 100, 110]
    shaped = penalize_overlong(
        [1.0] * 5, lengths, max_response_length=100, overlong_buffer_length=20, overlong_buffer_penalty=2
    )
    assert shaped.tolist() == [1, 1, 0.5, -1, -2]


@pytest.mark.parametrize(("buffer", "penalty"), [(0, 1.0), (-3, 1.0), (5, -0.1)])
def test_overlong_settings_out_of_range_are_refused(buffer: int, penalty: float) -> None:
    with pytest.raises(ConfigError, match="reward_shaping"):
        penalize_overlong(
            [1.0], [5], max_response_length=9, overlong_buffer_length=buffer, overlong_buffer_penalty=penalty
        )


def test_truncated_answers_keep_a_share() -> None:
    shaped = penalize_truncated([1.0, 1.0, -2.0], [True, False, True], stop_properly_penalty_coef=0.25)
    assert shaped.tolist() == [0.25, 1, -0.5]
    assert penalize_truncated([3.0], [True], stop_properly_penalty_coef=0).tolist() == [0]


@pytest.mark.parametrize("coefficient", [-0.1, 1.1])
def test_a_coefficient_out_of_range_is_refused(coefficient: float) -> None:
    with pytest.raises(ConfigError, match="stop_properly_penalty_coef"):
        penalize_truncated([1.0], [True], stop_properly_penalty_coef=coefficient)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(PolicyError, match="1 truncation flags for 2 rewards"):
        penalize_truncated([1.0, 2.0], [True], stop_properly_penalty_coef=0.5)
    with pytest.raises(PolicyError, match="1 lengths for 2 rewards"):
        penalize_overlong([1.0, 2.0], [3], max_response_length=9, overlong_buffer_length=1, overlong_buffer_penalty=1)

"""GRPO's estimators, and the KL penalty in the reward of each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regimen.algorithms.grpo import GRPO, EpisodeScores
from regimen.config.load import assignment, load_train_config
from regimen.tokens.forest import TrainingSequence


def grpo(**values: Any) -> GRPO:
    given = {"policy.train_global_batch_size": None, **values}
    config = load_train_config("quickstart/grpo", [assignment(key, value) for key, value in given.items()])
    return GRPO(config)


def scores(reward: list[float], group: list[int], length: list[int]) -> EpisodeScores:
    flags = np.zeros(len(reward), bool)
    return EpisodeScores(np.array(reward), np.array(group), np.array(length), flags)


IN_REWARD = {
    "grpo.adv_estimator.name": "reinforce_plus_plus",
    "loss_fn.use_kl_in_reward": True,
    "loss_fn.reference_policy_kl_penalty": 0.5,
    "loss_fn.reference_policy_kl_type": "k1",
}


def sequence(advantage: float, previous: list[float], reference: list[float]) -> TrainingSequence:
    size = len(previous)
    return TrainingSequence(
        list(range(size + 1)),
        [(1, size + 1)],
        advantage=np.full(size, advantage, np.float32),
        previous_logprob=np.array(previous, np.float32),
        reference_logprob=np.array(reference, np.float32),
    )


def test_a_penalty_in_the_reward_by_hand() -> None:
    """k1 is lp - ref: 1 and 0 in the first, 0 in the second. Tokens of 0.5 - 0.5 = 0, 0.5 and -0.5 are whitened."""
    algorithm = grpo(**IN_REWARD)
    made = algorithm.advantages(scores([1.0, 0.0], [0, 0], [2, 1]))
    assert made.advantage.tolist() == [0.5, -0.5]  # not whitened yet
    rows = [sequence(0.5, [-1.0, -2.0], [-2.0, -2.0]), sequence(-0.5, [-3.0], [-3.0])]
    finished, figures = algorithm.with_logprobs(rows)
    std = (0.5 / 3) ** 0.5
    assert [row.advantage.tolist() for row in finished] == [
        pytest.approx([0.0, 0.5 / std], abs=1e-6),
        pytest.approx([-0.5 / std]),
    ]
    assert figures == {"kl_in_reward": pytest.approx(1 / 3)}
    assert algorithm.options.reference_policy_kl_penalty == 0.0
    assert (algorithm.needs_reference, algorithm.needs_previous) == (True, True)


def test_token_advantages_are_clipped_last() -> None:
    algorithm = grpo(**IN_REWARD, **{"grpo.advantage_clip_high": 0.25})
    finished, _ = algorithm.with_logprobs([sequence(0.5, [-1.0], [-1.0]), sequence(-0.5, [-1.0], [-1.0])])
    assert [row.advantage.tolist() for row in finished] == [[0.25], [-1.0]]


def test_clamps_hold_in_the_reward() -> None:
    """k3 of a log-ratio of 30, which is cut to 20, is beyond the output clamp of 10."""
    algorithm = grpo(**{**IN_REWARD, "loss_fn.reference_policy_kl_type": "k3"})
    _, figures = algorithm.with_logprobs([sequence(0.5, [-31.0], [-1.0]), sequence(-0.5, [-1.0], [-1.0])])
    assert figures["kl_in_reward"] == 5.0


def test_without_the_option_nothing_is_changed() -> None:
    algorithm = grpo(**{"loss_fn.reference_policy_kl_penalty": 0.5})
    rows = [sequence(0.5, [-1.0], [-2.0])]
    assert algorithm.with_logprobs(rows) == (rows, {})
    assert (algorithm.options.reference_policy_kl_penalty, algorithm.needs_previous) == (0.5, False)

"""Changing rewards before advantages are formed: scaling, then a penalty for long or truncated answers.

In: one reward for each rollout. Out: new float64 arrays, the inputs untouched. A reward that is NaN (not scored)
stays NaN.
Refuses: empty ranges, a negative penalty, a coefficient outside 0..1, lengths that do not match the rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regimen.errors import ConfigError, PolicyError

Values = np.ndarray | Sequence[float]


def scale_rewards(
    rewards: Values,
    *,
    source_min: float = 0.0,
    source_max: float = 1.0,
    target_min: float = 0.0,
    target_max: float = 1.0,
) -> np.ndarray:
    """Clip to the source range, then map that range linearly onto the target range."""
    if source_min >= source_max:
        raise ConfigError(
            f"the range {source_min:g}..{source_max:g} is empty",
            where="grpo.reward_scaling",
            expected="source_min below source_max",
        )
    clipped = np.clip(np.asarray(rewards, np.float64), source_min, source_max)
    return target_min + (clipped - source_min) / (source_max - source_min) * (target_max - target_min)


def penalize_overlong(
    rewards: Values,
    lengths: np.ndarray | Sequence[int],
    *,
    max_response_length: int,
    overlong_buffer_length: int,
    overlong_buffer_penalty: float,
) -> np.ndarray:
    """DAPO's soft penalty: 0 up to the buffer, growing linearly to the whole penalty at `max_response_length`.

    It keeps growing beyond that length.
    """
    if overlong_buffer_length <= 0 or overlong_buffer_penalty < 0:
        raise ConfigError(
            f"buffer of {overlong_buffer_length} tokens with penalty {overlong_buffer_penalty:g}",
            where="grpo.reward_shaping",
            expected="a positive overlong_buffer_length and a penalty of at least 0",
        )
    rewards, lengths = _aligned(rewards, lengths, "lengths")
    excess = lengths - (max_response_length - overlong_buffer_length)
    return rewards + np.minimum(-excess / overlong_buffer_length * overlong_buffer_penalty, 0.0)


def penalize_truncated(
    rewards: Values, truncated: np.ndarray | Sequence[bool], *, stop_properly_penalty_coef: float
) -> np.ndarray:
    """Multiply the rewards of truncated answers by the coefficient."""
    if not 0 <= stop_properly_penalty_coef <= 1:
        raise ConfigError(
            f"{stop_properly_penalty_coef:g} is out of range",
            where="grpo.reward_shaping.stop_properly_penalty_coef",
            expected="0 to 1",
        )
    rewards, flags = _aligned(rewards, truncated, "truncation flags")
    return np.where(flags != 0, rewards * stop_properly_penalty_coef, rewards)


def _aligned(rewards: Values, others: Values, name: str) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.asarray(rewards, np.float64), np.asarray(others, np.float64)
    if left.shape != right.shape:
        raise PolicyError(f"{len(right)} {name} for {len(left)} rewards", expected="one for each")
    return left, right

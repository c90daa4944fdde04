"""Group relative policy optimisation (Shao et al. 2024): advantages from groups of episodes of one task, clipped loss.

In: rewards of episodes, grouped by task identity; failed episodes are no rewards. Out: advantages, and the loss.
One optimiser step is taken per batch of episodes, so the policy before the step is the policy that the forward pass
sees: its log-probabilities are those of that pass, and no second pass is made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from torch import Tensor

from regimen.algorithms.advantages import clip_advantages, group_advantages, has_variance
from regimen.algorithms.base import Batches
from regimen.algorithms.losses import PolicyGradientOptions, policy_gradient_loss
from regimen.algorithms.rewards import penalize_overlong, penalize_truncated, scale_rewards
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError
from regimen.policy.base import LossOutput, Supervision


@dataclass(frozen=True, slots=True)
class EpisodeScores:
    """What advantages are computed from: one entry per episode, `[B]`."""

    reward: np.ndarray  # float64, NaN where the episode failed
    group: np.ndarray  # int64, identity of the task
    length: np.ndarray  # int64, sampled tokens
    truncated: np.ndarray  # bool

    @property
    def scored(self) -> np.ndarray:
        """Which episodes have a reward that speaks about the model."""
        return np.isfinite(self.reward)


@dataclass(frozen=True, slots=True)
class EpisodeAdvantages:
    """`used`: episodes that enter the loss; `has_variance`: those whose group's rewards differ."""

    advantage: np.ndarray  # [B] float64
    used: np.ndarray  # [B] bool
    has_variance: np.ndarray  # [B] bool


class GRPO:
    """See `regimen.algorithms.base.Algorithm`."""

    name = "grpo"
    batches: Batches = "episodes"

    def __init__(self, config: TrainConfig) -> None:
        assert config.grpo is not None
        self.config = config.grpo
        options = {field.name: getattr(config.loss_fn, field.name) for field in fields(PolicyGradientOptions)}
        self.options = PolicyGradientOptions(**options)
        self.needs_reference = self.options.reference_policy_kl_penalty != 0
        if self.config.adv_estimator.name != "grpo":
            raise ConfigError(
                f"{self.config.adv_estimator.name!r} is not built yet",
                where="grpo.adv_estimator.name",
                expected="'grpo'",
            )

    def advantages(self, scores: EpisodeScores) -> EpisodeAdvantages:
        """Scale and shape rewards, leave out what is filtered, compare with the group, clip: in that order."""
        rewards = self._shaped(scores)
        used = scores.scored.copy()
        if self.config.overlong_filtering:
            used &= ~scores.truncated
        estimator = self.config.adv_estimator
        result = group_advantages(
            np.where(used, rewards, 0.0),
            scores.group,
            normalize_rewards=self.config.normalize_rewards
            if estimator.normalize_rewards is None
            else estimator.normalize_rewards,
            use_leave_one_out_baseline=self.config.use_leave_one_out_baseline
            if estimator.use_leave_one_out_baseline is None
            else estimator.use_leave_one_out_baseline,
            minus_baseline=estimator.minus_baseline,
            scored=used,
        )
        clipped = clip_advantages(result.advantages, self.config.advantage_clip_low, self.config.advantage_clip_high)
        return EpisodeAdvantages(
            np.where(used, clipped, 0.0), used, has_variance(np.where(used, rewards, 0.0), scores.group, scored=used)
        )

    def is_inert(self, advantage: float) -> bool:
        """Whether an episode of this advantage has no gradient, so that it is counted and not computed."""
        return advantage == 0.0 and not self.needs_reference

    def loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        """See `regimen.algorithms.losses.policy_gradient_loss`; the policy before the step is the current one."""
        return policy_gradient_loss(
            logprob, replace(batch, previous_logprob=logprob.detach().to(batch.weight.dtype)), self.options
        )

    def _shaped(self, scores: EpisodeScores) -> np.ndarray:
        rewards, scaling, shaping = scores.reward, self.config.reward_scaling, self.config.reward_shaping
        if scaling.enabled:
            rewards = scale_rewards(
                rewards,
                source_min=scaling.source_min,
                source_max=scaling.source_max,
                target_min=scaling.target_min,
                target_max=scaling.target_max,
            )
        if not shaping.enabled:
            return rewards
        if shaping.stop_properly_penalty_coef is not None:
            return penalize_truncated(
                rewards, scores.truncated, stop_properly_penalty_coef=shaping.stop_properly_penalty_coef
            )
        lengths = (shaping.max_response_length, shaping.overlong_buffer_length, shaping.overlong_buffer_penalty)
        if None in lengths:
            raise ConfigError(
                "enabled without a length",
                where="grpo.reward_shaping",
                expected="max_response_length, overlong_buffer_length and overlong_buffer_penalty",
            )
        return penalize_overlong(
            rewards,
            scores.length,
            max_response_length=lengths[0],  # type: ignore[arg-type]
            overlong_buffer_length=lengths[1],  # type: ignore[arg-type]
            overlong_buffer_penalty=lengths[2],  # type: ignore[arg-type]
        )

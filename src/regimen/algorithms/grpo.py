"""Group relative policy optimisation (Shao et al. 2024): advantages from groups of episodes of one task, clipped loss.

In: rewards of episodes, grouped by task identity; failed episodes are no rewards. Out: advantages, and the loss.
With one optimiser step per batch of episodes the policy before the step is the policy that the forward pass sees: its
log-probabilities are those of that pass, and no second pass is made. With several, they are computed before the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from regimen.algorithms.advantages import (
    clip_advantages,
    gdpo_advantages,
    group_advantages,
    has_variance,
    reinforce_plus_plus_advantages,
    whitened,
)
from regimen.algorithms.base import Batches
from regimen.algorithms.losses import PolicyGradientOptions, kl_estimate, policy_gradient_loss
from regimen.algorithms.rewards import penalize_overlong, penalize_truncated, scale_rewards
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError
from regimen.policy.base import LossOutput, Supervision
from regimen.tokens.forest import TrainingSequence


@dataclass(frozen=True, slots=True)
class EpisodeScores:
    """What advantages are computed from: one entry per episode, `[B]`."""

    reward: np.ndarray  # float64, NaN where the episode failed
    group: np.ndarray  # int64, identity of the task
    length: np.ndarray  # int64, sampled tokens
    truncated: np.ndarray  # bool
    components: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # float64 [B, K], for gdpo

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
        options = {option.name: getattr(config.loss_fn, option.name) for option in fields(PolicyGradientOptions)}
        self.penalty = config.loss_fn.reference_policy_kl_penalty
        self.kl_in_reward = config.loss_fn.use_kl_in_reward
        if self.kl_in_reward:  # in the reward, and not in the loss too
            options["reference_policy_kl_penalty"] = 0.0
        self.options = PolicyGradientOptions(**options)
        self.needs_reference = self.penalty != 0
        self.needs_previous = config.updates_per_step > 1 or self.kl_in_reward
        self.needs_components = self.config.adv_estimator.name == "gdpo"

    def advantages(self, scores: EpisodeScores) -> EpisodeAdvantages:
        """Scale and shape rewards, leave out what is filtered, compare with the group, clip: in that order."""
        used = scores.scored.copy()
        if self.config.overlong_filtering:
            used &= ~scores.truncated
        rewards = np.where(used, self._shaped(scores), 0.0)
        found = self._estimated(rewards, scores, used)
        if not self.kl_in_reward:  # else they are finished token by token, when the log-probabilities are there
            found = clip_advantages(found, self.config.advantage_clip_low, self.config.advantage_clip_high)
        return EpisodeAdvantages(np.where(used, found, 0.0), used, self._varies(rewards, scores, used))

    def varies(self, scores: EpisodeScores) -> np.ndarray:
        """For each episode, whether its group's rewards differ, before any is filtered: what dynamic sampling keeps."""
        rewards = np.where(scores.scored, self._shaped(scores), 0.0)
        return self._varies(rewards, scores, scores.scored)

    def _varies(self, rewards: np.ndarray, scores: EpisodeScores, used: np.ndarray) -> np.ndarray:
        """By the reward, or by any of its components where each is compared."""
        columns = list(scores.components.T) if self.needs_components else [rewards]
        each = [has_variance(np.where(used, column, 0.0), scores.group, scored=used) for column in columns]
        return np.any(each, axis=0) if each else np.zeros(len(rewards), bool)

    def _estimated(self, rewards: np.ndarray, scores: EpisodeScores, used: np.ndarray) -> np.ndarray:
        """The advantages of `grpo.adv_estimator`, `[B]`."""
        estimator = self.config.adv_estimator
        if estimator.name == "reinforce_plus_plus":
            return reinforce_plus_plus_advantages(
                rewards,
                scores.group,
                scores.length,
                minus_baseline=estimator.minus_baseline,
                whiten=not self.kl_in_reward,
                scored=used,
            )
        normalize, leave_one_out = estimator.normalize_rewards, estimator.use_leave_one_out_baseline
        normalize = self.config.normalize_rewards if normalize is None else normalize
        leave_one_out = self.config.use_leave_one_out_baseline if leave_one_out is None else leave_one_out
        if estimator.name == "gdpo":
            return gdpo_advantages(
                scores.components,
                scores.group,
                weights=estimator.reward_weights,
                normalize_rewards=normalize,
                use_leave_one_out_baseline=leave_one_out,
                scored=used,
            )
        return group_advantages(
            rewards,
            scores.group,
            normalize_rewards=normalize,
            use_leave_one_out_baseline=leave_one_out,
            minus_baseline=estimator.minus_baseline,
            scored=used,
        ).advantages

    def with_logprobs(self, sequences: list[TrainingSequence]) -> tuple[list[TrainingSequence], dict[str, float]]:
        """With `use_kl_in_reward`, advantages of tokens: the episode's minus the penalty, whitened over all tokens."""
        if not self.kl_in_reward:
            return sequences, {}
        sizes = [sequence.num_trained for sequence in sequences]
        weights = np.repeat([sequence.sample_mask for sequence in sequences], sizes)
        penalty = np.concatenate([self._kl(s.previous_logprob, s.reference_logprob) for s in sequences])
        raw = np.concatenate([sequence.advantage for sequence in sequences]).astype(np.float64)
        finished = clip_advantages(
            whitened(raw - self.penalty * penalty, weights),
            self.config.advantage_clip_low,
            self.config.advantage_clip_high,
        ).astype(np.float32)
        parts = np.split(finished, np.cumsum(sizes)[:-1])
        changed = [replace(s, advantage=part) for s, part in zip(sequences, parts, strict=True)]
        return changed, {"kl_in_reward": float(np.average(penalty, weights=weights))}

    def _kl(self, logprob: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """The estimate of each token, `[num_trained]` float64, clamped as in the loss."""
        low_high = self.options.kl_input_clamp_value, self.options.kl_output_clamp_value
        limits = [np.inf if limit is None else limit for limit in low_high]
        log_ratio = np.clip(reference.astype(np.float64) - logprob, -limits[0], limits[0])
        estimate = kl_estimate(torch.from_numpy(log_ratio), self.options.reference_policy_kl_type).numpy()
        return np.clip(estimate, -limits[1], limits[1])

    def is_inert(self, advantage: float) -> bool:
        """Whether an episode of this advantage has no gradient, so that it is counted and not computed."""
        return advantage == 0.0 and not self.needs_reference and not self.options.entropy_coefficient

    def loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        """See `regimen.algorithms.losses.policy_gradient_loss`; on policy, `previous_logprob` is the current one."""
        if not self.needs_previous:
            batch = replace(batch, previous_logprob=logprob.detach().to(batch.weight.dtype))
        return policy_gradient_loss(logprob, batch, self.options)

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

"""The sections `sft`, `dpo`, `grpo` and `loss_fn`, with NeMo RL's names and defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regimen.config.section import Section


class RowsConfig(Section):
    """Training on rows of a file. `max_num_steps` and `max_num_epochs`: whichever ends first."""

    max_num_epochs: int = Field(default=1, ge=1)
    max_num_steps: int = Field(default=60, ge=1)
    val_period: int = Field(default=10, ge=0)
    val_batches: int = Field(default=8, ge=0)
    val_global_batch_size: int = Field(default=32, ge=1)
    val_at_start: bool = True
    val_at_end: bool = False
    seed: int = 42


class SFTConfig(RowsConfig):
    """Supervised fine-tuning. `only_unmask_final`: train the last assistant turn of a conversation, not all of them."""

    only_unmask_final: bool = False


class DPOConfig(RowsConfig):
    """Direct preference optimisation; batches count pairs.

    `loss_type`: sigmoid (DPO), ipo, hinge, or robust (Chowdhury et al. 2024). `label_smoothing`: the share of pairs
    whose sides may be the wrong way round; with sigmoid it is the conservative DPO. `cache_reference_logprobs`: keep
    the reference's log-probabilities in the user's cache folder, for later runs on the same model and rows.
    """

    max_num_steps: int = Field(default=150, ge=1)
    val_period: int = Field(default=25, ge=0)
    val_global_batch_size: int = Field(default=8, ge=1)
    reference_policy_kl_penalty: float = Field(default=0.05, gt=0)
    preference_average_log_probs: bool = False
    sft_average_log_probs: bool = False
    preference_loss_weight: float = Field(default=1.0, ge=0)
    sft_loss_weight: float = Field(default=0.0, ge=0)
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    cache_reference_logprobs: bool = True


class RewardScalingConfig(Section):
    """Clip rewards to the source range, then map them linearly to the target range."""

    enabled: bool = False
    source_min: float = 0.0
    source_max: float = 1.0
    target_min: float = 0.0
    target_max: float = 1.0


class RewardShapingConfig(Section):
    """Penalties for long and for truncated answers; a None switches its penalty off."""

    enabled: bool = False
    overlong_buffer_length: int | None = Field(default=None, ge=1)
    overlong_buffer_penalty: float | None = Field(default=None, ge=0)
    max_response_length: int | None = Field(default=None, ge=1)
    stop_properly_penalty_coef: float | None = Field(default=None, ge=0, le=1)


class AdvantageConfig(Section):
    """`grpo.adv_estimator`. None in the first two means: as in `grpo`; it is filled in at load.

    `reward_weights`: one for each reward component of gdpo, by the components' names in alphabetical order.
    """

    name: Literal["grpo", "gdpo", "reinforce_plus_plus"] = "grpo"
    normalize_rewards: bool | None = None
    use_leave_one_out_baseline: bool | None = None
    minus_baseline: bool = True
    reward_weights: list[float] | None = None


class AsyncConfig(Section):
    """`grpo.async_grpo`: play the next step's episodes while this one trains; they are one step old when they train."""

    enabled: bool = False
    max_trajectory_age_steps: int = Field(default=1, ge=1)


class GRPOConfig(Section):
    """Group-relative policy optimisation.

    `max_steps_without_variance`: the run stops when no group's rewards differ for so many steps in succession; None:
    never.
    """

    num_prompts_per_step: int = Field(default=32, ge=1)
    num_generations_per_prompt: int = Field(default=16, ge=1)
    max_rollout_turns: int = Field(default=1, ge=1)
    max_num_epochs: int = Field(default=1, ge=1)
    max_num_steps: int = Field(default=1_000_000, ge=1)
    normalize_rewards: bool = True
    use_leave_one_out_baseline: bool = True
    advantage_clip_low: float | None = None
    advantage_clip_high: float | None = None
    overlong_filtering: bool = False
    use_dynamic_sampling: bool = False
    dynamic_sampling_max_gen_batches: int = Field(default=10, ge=1)
    batch_multiplier: float = Field(default=1.0, ge=1)
    async_grpo: AsyncConfig = AsyncConfig()
    max_steps_without_variance: int | None = Field(default=20, ge=1)
    adv_estimator: AdvantageConfig = AdvantageConfig()
    reward_scaling: RewardScalingConfig = RewardScalingConfig()
    reward_shaping: RewardShapingConfig = RewardShapingConfig()
    val_period: int = Field(default=10, ge=0)
    val_start_at: int = -1
    val_batch_size: int | None = Field(default=256, ge=1)
    val_at_start: bool = False
    val_at_end: bool = False
    max_val_samples: int | None = Field(default=256, ge=1)
    val_num_generations_per_prompt: int = Field(default=1, ge=1)
    skip_reference_policy_logprobs_calculation: bool = False
    seed: int = 42


class LossConfig(Section):
    """`loss_fn`: the policy-gradient loss of GRPO and its family.

    `use_importance_sampling_correction`: None switches it on, as episodes come with the log-probabilities that they
    were sampled with; it is filled in at load, with type `tis` and an upper bound of 2 where no type is set.
    `use_kl_in_reward`: the KL penalty is taken from the reward of each token and not added to the loss (Reinforce++).
    `length_normalizer`: the loss is divided by sequences times this number in place of the trained tokens (Dr. GRPO).
    `entropy_coefficient`: this times the policy's entropy is taken from the loss; 0 measures it alone, None neither.
    """

    reference_policy_kl_penalty: float = Field(default=0.01, ge=0)
    reference_policy_kl_type: Literal["k1", "k2", "k3"] = "k3"
    kl_input_clamp_value: float | None = Field(default=20.0, gt=0)
    kl_output_clamp_value: float | None = Field(default=10.0, gt=0)
    ratio_clip_min: float = Field(default=0.2, ge=0, le=1)
    ratio_clip_max: float = Field(default=0.2, ge=0)
    ratio_clip_c: float | None = Field(default=None, gt=1)
    use_on_policy_kl_approximation: bool = False
    use_importance_sampling_correction: bool | None = None
    truncated_importance_sampling_type: Literal["tis", "icepop", "seq-mask-tis"] | None = None
    truncated_importance_sampling_ratio: float | None = Field(default=None, gt=0)
    truncated_importance_sampling_ratio_min: float | None = Field(default=None, ge=0)
    sequence_level_importance_ratios: bool = False
    token_level_loss: bool = True
    force_on_policy_ratio: bool = False
    use_kl_in_reward: bool = False
    use_cispo: bool = False
    disable_ppo_ratio: bool = False
    length_normalizer: int | None = Field(default=None, ge=1)
    entropy_coefficient: float | None = Field(default=None, ge=0)

"""Rules between fields of a GRPO configuration: batches, sampling, rewards, loss.

In: a typed configuration. Out: nothing, or notes. Refuses contradictions before anything is loaded.
"""

from __future__ import annotations

import json
from typing import Any

from regimen.config.schema import GenerationConfig, PolicyConfig, TrainConfig
from regimen.config.source import Layers


def check_grpo(config: TrainConfig, layers: Layers) -> None:
    """All rules of GRPO; the sections it needs are there."""
    _check_batch(config, layers)
    assert config.grpo is not None
    _check_sampling(config.policy, config.grpo.val_num_generations_per_prompt, layers)
    _check_rewards(config, layers)
    _check_estimator(config, layers)
    _check_dynamic_sampling(config, layers)
    _check_async(config, layers)
    _check_loss(config, layers)


def _check_batch(config: TrainConfig, layers: Layers) -> None:
    batch, episodes = config.global_batch_size, config.episodes_per_step
    if episodes % batch:
        raise layers.refusal(
            "policy.train_global_batch_size",
            f"is {batch}, which does not divide the {episodes} episodes of a step "
            "(grpo.num_prompts_per_step x grpo.num_generations_per_prompt)",
            None,
            f"set policy.train_global_batch_size={episodes}, or remove it",
        )
    if config.updates_per_step > 1:
        layers.notes.append(
            f"policy.train_global_batch_size {batch} of {episodes} episodes: "
            f"{config.updates_per_step} optimiser steps for each batch of episodes"
        )
        if config.loss_fn.force_on_policy_ratio:
            raise layers.refusal(
                "loss_fn.force_on_policy_ratio",
                f"is true, but only the first of {config.updates_per_step} optimiser steps is on policy",
                "false",
                f"set policy.train_global_batch_size={episodes} for one optimiser step, or remove it",
            )


def _check_sampling(policy: PolicyConfig, num_validation_repeats: int, layers: Layers) -> None:
    generation = policy.generation
    assert generation is not None  # _check_sections holds it
    if generation.temperature == 0:
        raise layers.refusal(
            "policy.generation.temperature", "is 0: all answers of a group would be equal", "more than 0"
        )
    val_temperature = generation.temperature if generation.val_temperature is None else generation.val_temperature
    if val_temperature == 0 and num_validation_repeats > 1:
        raise layers.refusal(
            "grpo.val_num_generations_per_prompt",
            f"is {num_validation_repeats}, but at policy.generation.val_temperature 0 all answers to a task are equal",
            "1",
        )
    if generation.top_p < 1:
        raise layers.refusal("policy.generation.top_p", _cut_text(generation.top_p), "1.0", "set it to 1.0")
    if generation.top_k is not None:
        raise layers.refusal("policy.generation.top_k", _cut_text(generation.top_k), "null", "set it to null")
    _check_lengths(generation, policy, layers)
    if policy.precision == "float32" and generation.precision not in (None, policy.precision):
        raise layers.refusal(
            "policy.generation.precision",
            f"is {generation.precision}, but policy.precision is float32: sampler and policy would disagree",
            "null or float32",
            "remove it",
        )


def _cut_text(value: float) -> str:
    return f"is {value}: GRPO needs samples of the whole distribution, or its ratios are wrong"


def _check_lengths(generation: GenerationConfig, policy: PolicyConfig, layers: Layers) -> None:
    for name in ("max_new_tokens", "val_max_new_tokens"):
        value = getattr(generation, name)
        if value is not None and value > policy.max_total_sequence_length:
            raise layers.refusal(
                f"policy.generation.{name}",
                f"is {value}",
                f"at most policy.max_total_sequence_length ({policy.max_total_sequence_length})",
            )


def _check_rewards(config: TrainConfig, layers: Layers) -> None:
    grpo = config.grpo
    assert grpo is not None  # the caller holds it
    estimator = grpo.adv_estimator
    compares = (
        estimator.minus_baseline if estimator.name == "reinforce_plus_plus" else estimator.use_leave_one_out_baseline
    )
    if grpo.num_generations_per_prompt == 1 and compares:
        raise layers.refusal(
            "grpo.num_generations_per_prompt",
            "is 1, so that the baseline has nothing to compare with and every advantage is 0",
            "at least 2",
        )
    low, high = grpo.advantage_clip_low, grpo.advantage_clip_high
    if low is not None and high is not None and low > high:
        raise layers.refusal("grpo.advantage_clip_low", f"is {low}", f"at most grpo.advantage_clip_high ({high})")
    scaling = grpo.reward_scaling
    if scaling.enabled and scaling.source_min >= scaling.source_max:
        raise layers.refusal("grpo.reward_scaling.source_min", f"is {scaling.source_min}", "less than source_max")
    _check_shaping(config, layers)
    if grpo.skip_reference_policy_logprobs_calculation and config.loss_fn.reference_policy_kl_penalty > 0:
        raise layers.refusal(
            "grpo.skip_reference_policy_logprobs_calculation",
            "is true, but the KL penalty needs the reference",
            None,
            "set loss_fn.reference_policy_kl_penalty=0",
        )


def _check_estimator(config: TrainConfig, layers: Layers) -> None:
    """Options that the chosen estimator does not read are refused where they say something."""
    grpo = config.grpo
    assert grpo is not None  # the caller holds it
    estimator = grpo.adv_estimator
    if config.loss_fn.use_kl_in_reward:
        _check_kl_in_reward(config, layers)
    if estimator.name != "gdpo":
        if estimator.reward_weights is not None:
            raise layers.refusal("grpo.adv_estimator.reward_weights", "is set", "adv_estimator.name: gdpo with it")
        return
    if not estimator.minus_baseline:
        raise layers.refusal("grpo.adv_estimator.minus_baseline", "is false, but gdpo always compares", "true")
    for name in ("reward_scaling", "reward_shaping"):
        if getattr(grpo, name).enabled:
            raise layers.refusal(
                f"grpo.{name}.enabled", "is true, but gdpo compares the components of rewards as they are", "false"
            )


def _check_kl_in_reward(config: TrainConfig, layers: Layers) -> None:
    """Only Reinforce++ has rewards of tokens; and the option must do something."""
    assert config.grpo is not None  # the caller holds it
    if config.grpo.adv_estimator.name != "reinforce_plus_plus":
        raise layers.refusal(
            "loss_fn.use_kl_in_reward",
            f"is true, but {config.grpo.adv_estimator.name} has one advantage for an episode",
            "grpo.adv_estimator.name: reinforce_plus_plus with it",
        )
    if config.loss_fn.reference_policy_kl_penalty == 0:
        raise layers.refusal("loss_fn.reference_policy_kl_penalty", "is 0, but use_kl_in_reward is set", "more than 0")
    for name in ("use_on_policy_kl_approximation", "force_on_policy_ratio"):
        if getattr(config.loss_fn, name):
            raise layers.refusal(f"loss_fn.{name}", "is true, but use_kl_in_reward is set", "false")


def _check_dynamic_sampling(config: TrainConfig, layers: Layers) -> None:
    grpo = config.grpo
    assert grpo is not None  # the caller holds it
    if grpo.use_dynamic_sampling and grpo.num_generations_per_prompt == 1:
        raise layers.refusal(
            "grpo.use_dynamic_sampling", "is true, but a group of one cannot differ in reward", "false"
        )
    if not grpo.use_dynamic_sampling and grpo.batch_multiplier != 1:
        raise layers.refusal(
            "grpo.batch_multiplier",
            f"is {grpo.batch_multiplier:g}, but only dynamic sampling reads it",
            "1",
            "set grpo.use_dynamic_sampling=true, or remove it",
        )


def _check_async(config: TrainConfig, layers: Layers) -> None:
    assert config.grpo is not None  # the caller holds it
    if config.grpo.async_grpo.enabled and not config.loss_fn.use_importance_sampling_correction:
        raise layers.refusal(
            "grpo.async_grpo.enabled",
            "is true, but episodes of earlier weights need importance-sampling correction",
            "loss_fn.use_importance_sampling_correction: true with it",
        )


def _check_shaping(config: TrainConfig, layers: Layers) -> None:
    assert config.grpo is not None  # the caller holds it
    shaping = config.grpo.reward_shaping
    overlong = ("overlong_buffer_length", "overlong_buffer_penalty", "max_response_length")
    there = [name for name in overlong if getattr(shaping, name) is not None]
    if not shaping.enabled:
        return
    if there and len(there) < len(overlong):
        missing = next(name for name in overlong if name not in there)
        raise layers.refusal(f"grpo.reward_shaping.{missing}", f"is missing, but {there[0]} is set")
    if not there and shaping.stop_properly_penalty_coef is None:
        raise layers.refusal("grpo.reward_shaping.enabled", "is true, but no penalty is set")


def _check_loss(config: TrainConfig, layers: Layers) -> None:
    """What the loss itself refuses too, said before the model is loaded."""
    loss = config.loss_fn
    for name, value, expected in _loss_conflicts(loss.model_dump()):
        raise layers.refusal(f"loss_fn.{name}", f"is {json.dumps(value)}", expected)


def _loss_conflicts(loss: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """(key, value, expected) of each contradiction."""
    kind = loss["truncated_importance_sampling_type"]
    low, high = loss["truncated_importance_sampling_ratio_min"], loss["truncated_importance_sampling_ratio"]
    by_cispo = "false, as use_cispo weights each token by its clipped ratio"
    checks = [
        (loss["sequence_level_importance_ratios"] and loss["token_level_loss"], "sequence_level_importance_ratios",
         "false, or token_level_loss: false with it"),
        (loss["force_on_policy_ratio"] and loss["disable_ppo_ratio"], "force_on_policy_ratio",
         "false, as disable_ppo_ratio is set"),
        *((loss["use_cispo"] and loss[name], name, by_cispo)
          for name in ("disable_ppo_ratio", "force_on_policy_ratio", "sequence_level_importance_ratios")),
        (loss["use_cispo"] and loss["ratio_clip_c"] is not None, "ratio_clip_c", "null, as use_cispo is set"),
        (loss["use_cispo"] and not loss["token_level_loss"], "token_level_loss", "true, as use_cispo is set"),
        (loss["length_normalizer"] is not None and not loss["token_level_loss"], "length_normalizer",
         "null, as token_level_loss is false"),
        (kind is None and high is not None, "truncated_importance_sampling_ratio",
         "null, as truncated_importance_sampling_type is null"),
        (kind is None and low is not None, "truncated_importance_sampling_ratio_min",
         "null, as truncated_importance_sampling_type is null"),
        (kind is not None and not loss["use_importance_sampling_correction"], "truncated_importance_sampling_type",
         "null, as use_importance_sampling_correction is false"),
        (kind is not None and high is None, "truncated_importance_sampling_ratio",
         f"a positive upper bound for {kind}"),
        (kind in ("icepop", "seq-mask-tis") and low is None, "truncated_importance_sampling_ratio_min",
         f"a lower bound for {kind}"),
        (None not in (low, high) and (low or 0) > (high or 0), "truncated_importance_sampling_ratio_min",
         f"at most the upper bound {high}"),
        (kind == "seq-mask-tis" and loss["sequence_level_importance_ratios"], "sequence_level_importance_ratios",
         "false, as seq-mask-tis weights single tokens"),
    ]  # fmt: skip
    return [(name, loss[name], expected) for wrong, name, expected in checks if wrong]

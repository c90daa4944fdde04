"""Rules between fields, checked before anything is loaded.

In: a typed configuration. Out: nothing, or notes. Refuses contradictions with a `ConfigError` that says what to set.
`check_runnable` is for the pipeline: what may be written down but not run by this build.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from regimen.config.schema import DatasetConfig, GenerationConfig, PolicyConfig, TrainConfig
from regimen.config.schema_data import KEYS_OF
from regimen.config.schema_loops import CollectConfig, EvaluateConfig, IterateConfig, PlayConfig
from regimen.config.schema_policy import SamplingConfig
from regimen.config.source import Layers
from regimen.errors import ConfigError
from regimen.registry import PARTS, nearest

DATASETS_OF: dict[str, tuple[str, ...]] = {
    "sft": ("openai_format", "ResponseDataset"),
    "dpo": ("BinaryPreferenceDataset", "PreferenceDataset"),
    "grpo": ("Environment", "NemoGymDataset", "ResponseDataset"),
}
# Generators of NeMo RL that this build does not have; `transformers` gives the same samples, slower.
OTHER_GENERATORS = ("vllm", "megatron", "sglang", "dynamo")


def check_train(config: TrainConfig, layers: Layers) -> None:
    """All rules of a training configuration; appends to `layers.notes`."""
    _check_sections(config, layers)
    _check_data(config, layers)
    _check_environments(config, layers)
    _check_validation(config, layers)
    _check_trackers(config, layers)
    if config.grpo is not None:
        _check_grpo_batch(config, layers)
        _check_grpo_sampling(config.policy, layers)
        _check_grpo_rewards(config, layers)
        _check_loss(config, layers)
    if config.cluster.num_nodes > 1 or config.cluster.gpus_per_node > 1:
        layers.notes.append("no effect here, as the local policy is one process: cluster")


def check_runnable(config: TrainConfig) -> None:
    """Refuse what this build can read but not run."""
    for name in ("train", "validation"):
        entry: DatasetConfig | None = getattr(config.data, name)
        if config.grpo is not None and entry is not None and entry.dataset_name == "ResponseDataset":
            raise ConfigError(
                f"the environment {entry.env_name!r} for question-and-answer rows is not implemented in this build",
                where=f"data.{name}.env_name",
                expected="dataset_name Environment or NemoGymDataset",
                fix="convert the rollouts with `regimen convert --to grpo --format gym`",
            )
    if config.updates_per_step > 1:
        raise ConfigError(
            f"{config.updates_per_step} optimiser steps for one batch of episodes are not implemented in this build",
            where="policy.train_global_batch_size",
            fix=f"set policy.train_global_batch_size={config.episodes_per_step}",
        )


def check_play(config: PlayConfig, prefix: str = "") -> None:
    """Rules of playing episodes."""
    _check_backend(config.generation.backend, f"{prefix}generation.backend")
    if config.generation.max_new_tokens >= config.max_sequence_length:
        raise ConfigError(
            f"is {config.generation.max_new_tokens}",
            where=f"{prefix}generation.max_new_tokens",
            expected=f"less than {prefix}max_sequence_length ({config.max_sequence_length}): the prompt needs room too",
        )


def check_collect(config: CollectConfig) -> None:
    """Rules of `regimen collect`."""
    check_play(config)
    if config.resume and config.overwrite:
        raise ConfigError("resume and overwrite exclude each other", where="resume", fix="set only one of them")


def check_evaluate(config: EvaluateConfig) -> None:
    """Rules of `regimen evaluate`."""
    check_play(config)
    _check_pass_at(config.pass_at, config.num_repeats, "")
    _check_greedy(config.generation, config.num_repeats, "")


def check_iterate(config: IterateConfig) -> None:
    """Rules of `regimen iterate`."""
    check_play(config.collect, "collect.")
    check_play(config.evaluate, "evaluate.")
    _check_pass_at(config.evaluate.pass_at, config.evaluate.num_repeats, "evaluate.")
    _check_greedy(config.evaluate.generation, config.evaluate.num_repeats, "evaluate.")
    if config.resume and config.overwrite:
        raise ConfigError("resume and overwrite exclude each other", where="resume", fix="set only one of them")
    if "to" not in config.convert:
        raise ConfigError("is missing", where="convert.to", expected="sft, dpo or grpo", fix="set convert.to")
    if config.evaluate.split == config.evaluate.final_split:
        raise ConfigError(
            f"is {config.evaluate.final_split!r}, as evaluate.split is",
            where="evaluate.final_split",
            expected="another split: models are chosen on one and judged on the other",
        )


def _check_sections(config: TrainConfig, layers: Layers) -> None:
    if config.grpo is None:
        for name in ("loss_fn", "env"):
            if name in config.model_fields_set:
                raise _refusal(
                    layers,
                    name,
                    f"has no meaning with {config.algorithm}",
                    "it in a GRPO configuration",
                    f"remove {name}",
                )
        if config.policy.generation is not None:
            layers.notes.append(f"no effect here, as {config.algorithm} generates nothing: policy.generation")
        return
    if config.policy.generation is None:
        raise _refusal(layers, "policy.generation", "is missing", None, "write `defaults: grpo`, or the section")
    _check_backend(config.policy.generation.backend, layers.where("policy.generation.backend"))


def _check_backend(name: str, where: str) -> None:
    key = where.split(" ")[0]
    if name in OTHER_GENERATORS:
        raise ConfigError(
            f"the generation backend {name!r} is not implemented in this build",
            where=where,
            fix=f"set {key}=transformers",
        )
    known = sorted(PARTS["generation"])
    if name not in known:
        close = nearest(name, known)
        raise ConfigError(
            f"unknown generation backend {name!r}",
            where=where,
            expected=f"one of {', '.join(known)}",
            fix=f"did you mean {close!r}?" if close else None,
        )


def _check_data(config: TrainConfig, layers: Layers) -> None:
    if config.data.train is None:
        names = " or ".join(DATASETS_OF[config.algorithm])
        raise _refusal(
            layers,
            "data.train",
            "is missing",
            f"training data: dataset_name {names}",
            "set data.train.dataset_name and data.train.data_path",
        )
    for name in ("train", "validation"):
        entry: DatasetConfig | None = getattr(config.data, name)
        if entry is not None:
            _check_dataset(config, entry, f"data.{name}", layers)


def _check_dataset(config: TrainConfig, entry: DatasetConfig, path: str, layers: Layers) -> None:
    accepted = DATASETS_OF[config.algorithm]
    if entry.dataset_name not in accepted:
        raise _refusal(
            layers,
            f"{path}.dataset_name",
            f"{entry.dataset_name!r} is no data for {config.algorithm}",
            f"one of {', '.join(accepted)}",
        )
    needed = "env_name" if entry.dataset_name == "Environment" else "data_path"
    if not getattr(entry, needed):
        raise _refusal(layers, f"{path}.{needed}", f"is missing for {entry.dataset_name}", None, f"set {path}.{needed}")
    for name, info in DatasetConfig.model_fields.items():
        if name == "dataset_name" or name in KEYS_OF[entry.dataset_name]:
            continue
        value = getattr(entry, name)
        if value != info.default:
            raise _refusal(layers, f"{path}.{name}", f"is {value!r}, but {entry.dataset_name} does not read it")
    for name in ("prompt_file", "system_prompt_file"):
        if config.grpo is None and getattr(entry, name) is not None:
            raise _refusal(
                layers, f"{path}.{name}", "is not implemented in this build", "null", f"remove {path}.{name}"
            )


def _check_environments(config: TrainConfig, layers: Layers) -> None:
    """Options are for environments that the data names; those of `math` come with a shipped base."""
    entries = [entry for entry in (config.data.train, config.data.validation) if entry is not None]
    names = sorted({entry.env_name for entry in entries if entry.env_name is not None})
    if any(entry.dataset_name == "NemoGymDataset" and entry.env_name is None for entry in entries):
        return
    for name in config.env:
        if name not in (*names, "math"):
            raise _refusal(layers, f"env.{name}", "no data names this environment", f"env.{' or env.'.join(names)}")


def _check_validation(config: TrainConfig, layers: Layers) -> None:
    """Validation is asked for exactly when there is something to validate on."""
    section, name = config.training, config.algorithm
    asked = [key for key in ("val_at_start", "val_at_end") if getattr(section, key)]
    asked += ["val_period"] if section.val_period > 0 else []
    if config.data.validation is None:
        if asked:
            off = " ".join(
                f"{name}.{key}={0 if key == 'val_period' else 'false'}" for key in sorted(asked, reverse=True)
            )
            raise _refusal(
                layers,
                f"{name}.{asked[-1]}",
                f"is {json.dumps(getattr(section, asked[-1]))}, but there is no validation data",
                "data.validation",
                f"set data.validation.data_path, or {off}",
            )
        metric = config.checkpoint_metric
        if metric is not None and metric[0] == "val":
            layers.notes.append("without validation data, checkpoints are kept by age: checkpointing.metric_name")
    elif not asked:
        layers.notes.append(f"validation data is given but {name}.val_period is 0: it will not be used")
    metric = config.checkpoint_metric
    if metric is not None and metric[0] not in ("train", "val"):
        raise _refusal(
            layers,
            "checkpointing.metric_name",
            f"is {config.checkpointing.metric_name!r}",
            "val:<metric> or train:<metric>",
        )


def _check_trackers(config: TrainConfig, layers: Layers) -> None:
    if not config.logger.wandb_enabled:
        return
    if "wandb" not in PARTS["tracker"]:
        missing = "this build has no wandb tracker"
    elif importlib.util.find_spec("wandb") is None:
        missing = "the package wandb is not installed"
    else:
        return
    layers.notes.append(f"logger.wandb_enabled is true, but {missing}: metrics go to the run folder only")


def _check_grpo_batch(config: TrainConfig, layers: Layers) -> None:
    batch, episodes = config.global_batch_size, config.episodes_per_step
    if episodes % batch:
        raise _refusal(
            layers,
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


def _check_grpo_sampling(policy: PolicyConfig, layers: Layers) -> None:
    generation = policy.generation
    assert generation is not None  # _check_sections holds it
    if generation.temperature == 0:
        raise _refusal(
            layers, "policy.generation.temperature", "is 0: all answers of a group would be equal", "more than 0"
        )
    if generation.top_p < 1:
        raise _refusal(layers, "policy.generation.top_p", _cut_text(generation.top_p), "1.0", "set it to 1.0")
    if generation.top_k is not None:
        raise _refusal(layers, "policy.generation.top_k", _cut_text(generation.top_k), "null", "set it to null")
    _check_lengths(generation, policy, layers)


def _cut_text(value: float) -> str:
    return f"is {value}: GRPO needs samples of the whole distribution, or its ratios are wrong"


def _check_lengths(generation: GenerationConfig, policy: PolicyConfig, layers: Layers) -> None:
    for name in ("max_new_tokens", "val_max_new_tokens"):
        value = getattr(generation, name)
        if value is not None and value > policy.max_total_sequence_length:
            raise _refusal(
                layers,
                f"policy.generation.{name}",
                f"is {value}",
                f"at most policy.max_total_sequence_length ({policy.max_total_sequence_length})",
            )


def _check_grpo_rewards(config: TrainConfig, layers: Layers) -> None:
    grpo = config.grpo
    assert grpo is not None  # the caller holds it
    if grpo.num_generations_per_prompt == 1 and grpo.adv_estimator.use_leave_one_out_baseline:
        raise _refusal(
            layers,
            "grpo.num_generations_per_prompt",
            "is 1, so that the leave-one-out baseline has nothing to compare with and every advantage is 0",
            "at least 2",
        )
    low, high = grpo.advantage_clip_low, grpo.advantage_clip_high
    if low is not None and high is not None and low > high:
        raise _refusal(layers, "grpo.advantage_clip_low", f"is {low}", f"at most grpo.advantage_clip_high ({high})")
    scaling = grpo.reward_scaling
    if scaling.enabled and scaling.source_min >= scaling.source_max:
        raise _refusal(layers, "grpo.reward_scaling.source_min", f"is {scaling.source_min}", "less than source_max")
    _check_shaping(config, layers)
    if grpo.adv_estimator.reward_weights is not None and grpo.adv_estimator.name != "gdpo":
        raise _refusal(layers, "grpo.adv_estimator.reward_weights", "is set", "adv_estimator.name: gdpo with it")
    if grpo.skip_reference_policy_logprobs_calculation and config.loss_fn.reference_policy_kl_penalty > 0:
        raise _refusal(
            layers,
            "grpo.skip_reference_policy_logprobs_calculation",
            "is true, but the KL penalty needs the reference",
            None,
            "set loss_fn.reference_policy_kl_penalty=0",
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
        raise _refusal(layers, f"grpo.reward_shaping.{missing}", f"is missing, but {there[0]} is set")
    if not there and shaping.stop_properly_penalty_coef is None:
        raise _refusal(layers, "grpo.reward_shaping.enabled", "is true, but no penalty is set")


def _check_loss(config: TrainConfig, layers: Layers) -> None:
    """What the loss itself refuses too, said before the model is loaded."""
    loss = config.loss_fn
    for name, value, expected in _loss_conflicts(loss.model_dump()):
        raise _refusal(layers, f"loss_fn.{name}", f"is {json.dumps(value)}", expected)


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


def _check_pass_at(pass_at: list[int], num_repeats: int, prefix: str) -> None:
    for k in pass_at:
        if not 1 <= k <= num_repeats:
            raise ConfigError(
                f"asks for pass@{k} of {num_repeats} repeats",
                where=f"{prefix}pass_at",
                expected=f"numbers from 1 to {prefix}num_repeats",
                fix=f"set {prefix}num_repeats={max(k, 1)}",
            )


def _check_greedy(generation: SamplingConfig, num_repeats: int, prefix: str) -> None:
    if generation.temperature == 0 and num_repeats > 1:
        raise ConfigError(
            f"is 0, so that the {num_repeats} repeats of a task are all equal",
            where=f"{prefix}generation.temperature",
            expected=f"more than 0, or {prefix}num_repeats: 1",
        )


def _refusal(
    layers: Layers, path: str, message: str, expected: str | None = None, fix: str | None = None
) -> ConfigError:
    return ConfigError(message, where=layers.where(path), expected=expected, fix=fix)

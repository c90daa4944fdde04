"""Rules between fields, checked before anything is loaded.

In: a typed configuration. Out: nothing, or notes. Refuses contradictions with a `ConfigError` that says what to set.
"""

from __future__ import annotations

import importlib.util
import json

from regimen.config import nemo_gym
from regimen.config.nemo_gym import check_nemo_gym
from regimen.config.rules_grpo import check_grpo
from regimen.config.rules_lora import check_lora
from regimen.config.rules_processes import check_processes
from regimen.config.schema import DatasetConfig, DPOConfig, TrainConfig
from regimen.config.schema_data import KEYS_OF
from regimen.config.schema_loops import CollectConfig, EvaluateConfig, IterateConfig, PlayConfig
from regimen.config.schema_policy import SamplingConfig
from regimen.config.source import Layers
from regimen.errors import ConfigError
from regimen.registry import PARTS, did_you_mean

DATASETS_OF: dict[str, tuple[str, ...]] = {
    "sft": ("openai_format", "ResponseDataset"),
    "dpo": ("BinaryPreferenceDataset", "PreferenceDataset"),
    "grpo": ("Environment", "NemoGymDataset", "ResponseDataset", "Mixture"),
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
        check_grpo(config, layers)
    if config.dpo is not None:
        _check_preference(config.dpo, layers)
    if config.run.deterministic:
        layers.notes.append(
            "run.deterministic costs speed: kernels that give the same bits each time"
            + (", and episodes are played one at a time" if config.grpo is not None else "")
        )
    check_processes(config, layers)
    check_lora(config, layers)


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
    _check_policy(config)
    if config.resume and config.overwrite:
        raise ConfigError("resume and overwrite exclude each other", where="resume", fix="set only one of them")


def _check_policy(config: CollectConfig) -> None:
    """One policy: a model here, a model at an endpoint, or an agent of a running gym."""
    if config.gym is None:
        if not config.model:
            raise ConfigError("is missing", where="model", fix="set model")
        for name in ("agent", "tasks"):
            if getattr(config, name) is not None:
                raise ConfigError("is set, but gym is not", where=name, fix="set gym to the head server's address")
        if config.token_ids and config.model_url is None:
            raise ConfigError(
                "is set, but model_url is not", where="token_ids", fix="leave it out: a model here has ids"
            )
        return
    for name in ("model", "model_url", "max_turns"):
        if getattr(config, name):
            raise ConfigError("is set, but gym too", where=name, fix=f"leave {name} out: the gym's agent has its own")
    for name in ("agent", "tasks"):
        if getattr(config, name) is None:
            raise ConfigError("is missing", where=name, fix=f"set {name}: a gym plays rows of a file with an agent")


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
                raise layers.refusal(
                    name,
                    f"has no meaning with {config.algorithm}",
                    "it in a GRPO configuration",
                    f"remove {name}",
                )
        if config.policy.generation is not None:
            layers.notes.append(f"no effect here, as {config.algorithm} generates nothing: policy.generation")
        return
    if config.policy.generation is None:
        raise layers.refusal("policy.generation", "is missing", None, "write `defaults: grpo`, or the section")
    _check_backend(config.policy.generation.backend, layers.where("policy.generation.backend"))


def _check_backend(name: str, where: str) -> None:
    key = where.split(" ")[0]
    if name in OTHER_GENERATORS:
        raise ConfigError(
            f"the generation backend {name!r} is not implemented in this build",
            where=where,
            fix=f"set {key}=transformers",
        )
    if name == "fake":
        raise ConfigError(
            "the generation backend 'fake' is for tests: it answers from a script, not with a model",
            where=where,
            fix=f"set {key}=transformers",
        )
    known = sorted(set(PARTS["generation"]) - {"fake"})
    if name not in known:
        raise ConfigError(
            f"unknown generation backend {name!r}",
            where=where,
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(name, known),
        )


def _check_data(config: TrainConfig, layers: Layers) -> None:
    if config.data.train is None:
        names = " or ".join(DATASETS_OF[config.algorithm])
        raise layers.refusal(
            "data.train",
            "is missing",
            f"training data: dataset_name {names}",
            "set data.train.dataset_name and data.train.data_path",
        )
    for name in ("train", "validation"):
        entry: DatasetConfig | None = getattr(config.data, name)
        if entry is not None:
            _check_dataset(config, entry, f"data.{name}", layers)
            for number, part in enumerate(entry.parts or []):
                _check_part(config, part, f"data.{name}.{number}", layers)
            for part in entry.sources:
                _check_split(part, name, layers)
    _check_input_length(config, layers)


def _check_input_length(config: TrainConfig, layers: Layers) -> None:
    limit, length = config.data.max_input_seq_length, config.policy.max_total_sequence_length
    if limit is not None and limit < length:
        raise layers.refusal(
            "data.max_input_seq_length",
            f"is {limit}, but prompts have no limit of their own in this build",
            f"null, or at least policy.max_total_sequence_length ({length})",
            f"set policy.max_total_sequence_length={limit} to bound whole sequences, or data.max_input_seq_length=null",
        )


def _check_split(entry: DatasetConfig, name: str, layers: Layers) -> None:
    """A file has no splits: it is read whole, as what it is given for."""
    if entry.dataset_name != "Environment" and entry.split not in (None, "train", name):
        raise layers.refusal(
            f"data.{name}.split",
            f"is {entry.split!r}, but {entry.dataset_name} reads its file whole",
            "null or 'train'",
            f"name the file of that split in data.{name}.data_path",
        )


def _check_dataset(config: TrainConfig, entry: DatasetConfig, path: str, layers: Layers) -> None:
    accepted = DATASETS_OF[config.algorithm]
    if entry.dataset_name not in accepted:
        raise layers.refusal(
            f"{path}.dataset_name",
            f"{entry.dataset_name!r} is no data for {config.algorithm}",
            f"one of {', '.join(accepted)}",
        )
    needed = {"Environment": "env_name", "Mixture": "parts"}.get(entry.dataset_name, "data_path")
    if not getattr(entry, needed):
        raise layers.refusal(f"{path}.{needed}", f"is missing for {entry.dataset_name}", None, f"set {path}.{needed}")
    for name, info in DatasetConfig.model_fields.items():
        if name == "dataset_name" or name in KEYS_OF[entry.dataset_name]:
            continue
        value = getattr(entry, name)
        if value != info.default:
            raise layers.refusal(f"{path}.{name}", f"is {value!r}, but {entry.dataset_name} does not read it")
    for name in ("prompt_file", "system_prompt_file"):
        if config.grpo is None and getattr(entry, name) is not None:
            raise layers.refusal(f"{path}.{name}", "is not implemented in this build", "null", f"remove {path}.{name}")


def _check_part(config: TrainConfig, part: DatasetConfig, path: str, layers: Layers) -> None:
    """A data set of a mixture has a weight, and mixes none itself."""
    if part.dataset_name == "Mixture":
        raise layers.refusal(f"{path}.dataset_name", "is a mixture in a mixture", "one data set", "name its parts here")
    _check_dataset(config, part.model_copy(update={"weight": 1.0}), path, layers)


def _check_environments(config: TrainConfig, layers: Layers) -> None:
    """Options are for environments that the data names; those of `math` come with a shipped base."""
    data = (config.data.train, config.data.validation)
    entries = [part for entry in data if entry is not None for part in entry.sources]
    names = sorted({entry.env_name for entry in entries if entry.env_name is not None})
    if nemo_gym.NAME in config.env:
        check_nemo_gym(config, layers)
        names.append(nemo_gym.NAME)
    elif nemo_gym.NAME in names:
        fix = f"start a gym, and set {nemo_gym.PATH}.head_server_url to its head server"
        raise layers.refusal("data.train.env_name", f"is {nemo_gym.NAME}, but there is no {nemo_gym.PATH}", None, fix)
    if any(entry.dataset_name == "NemoGymDataset" and entry.env_name is None for entry in entries):
        return
    for name in config.env:
        if name not in (*names, "math"):
            raise layers.refusal(
                f"env.{name}",
                "no data names this environment",
                f"env.{' or env.'.join(names)}",
                f"remove env.{name}, or set data.train.env_name={name}",
            )


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
            raise layers.refusal(
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
        raise layers.refusal(
            "checkpointing.metric_name",
            f"is {config.checkpointing.metric_name!r}",
            "val:<metric> or train:<metric>",
        )


def _check_preference(dpo: DPOConfig, layers: Layers) -> None:
    """What the loss itself refuses too, said before the model is loaded."""
    if dpo.label_smoothing and dpo.loss_type in ("ipo", "hinge"):
        raise layers.refusal(
            "dpo.label_smoothing", f"is {dpo.label_smoothing}", f"0, as dpo.loss_type {dpo.loss_type} does not read it"
        )
    if dpo.loss_type == "robust" and not dpo.label_smoothing:
        raise layers.refusal(
            "dpo.label_smoothing", "is 0", "more than 0, as dpo.loss_type robust without it is sigmoid"
        )
    if dpo.preference_loss_weight == 0 and dpo.sft_loss_weight == 0:
        raise layers.refusal("dpo.preference_loss_weight", "is 0, as dpo.sft_loss_weight is", "one of them above 0")


def _check_trackers(config: TrainConfig, layers: Layers) -> None:
    """A tracker whose package is missing is said, and not used: metrics go to the run folder in any case."""
    for name in ("wandb", "mlflow"):
        if getattr(config.logger, f"{name}_enabled") and importlib.util.find_spec(name) is None:
            layers.notes.append(
                f"logger.{name}_enabled is true, but the package {name} is not installed: metrics go to the run folder "
                f"only; to fix: pip install 'regimen-rl[{name}]'"
            )


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

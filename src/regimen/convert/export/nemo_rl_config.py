"""A training configuration in NeMo RL's keys of today, complete by itself.

In: an export request and the data sets that were written. Out: the tree of config.yaml: NeMo RL's example values,
under the keys of NeMo RL that were given, under what Regimen's own keys say. What follows from another key there
stays an interpolation, so that overrides on NeMo RL's command line carry through.
Refuses: batches that cannot be filled or divided, environments without their section.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from regimen.config.interpolate import interpolate
from regimen.config.known import DATA_ENTRIES, KNOWN
from regimen.config.load import escaped
from regimen.config.schema import DatasetConfig, RunConfig
from regimen.config.schema_policy import DTensorConfig
from regimen.config.source import Layers, Tree, lookup, merge, nest, without
from regimen.convert.export.nemo_rl_batches import set_batches
from regimen.convert.export.nemo_rl_mixture import PASSED_ON, PROMPT_FILES
from regimen.convert.export.nemo_rl_rows import DataSet
from regimen.convert.export.request import ENTRIES, ExportRequest
from regimen.errors import ConfigError

VALUES = Path(__file__).with_name("nemo_rl_values.yaml")
# Keys that older versions read and 0.6 does not.
GONE = ("policy.fsdp_offload_enabled", "policy.tokenizer.is_tokenizer_processor")
# Regimen's names of the metric that ranks checkpoints, and NeMo RL's.
METRICS = {
    "sft": {"loss": "val_loss"},
    "dpo": {"loss": "validation-default_loss", "val_loss": "validation-default_loss"},
    "grpo": {"reward": "accuracy", "val_reward": "accuracy"},
}
KEEP_ALL = 1_000_000


@cache
def example_values(algorithm: str) -> Tree:
    """NeMo RL's example values for an algorithm, with the interpolations between them."""
    table = cast("Tree", yaml.safe_load(VALUES.read_text(encoding="utf-8")))
    return merge(table["common"], table[algorithm])


def nemo_rl_config(request: ExportRequest, data: dict[str, DataSet]) -> Tree:
    """The whole configuration, without inheritance."""
    values = example_values(request.config.algorithm)
    said = merge(_given_keys(request), _own_keys(request, data))
    tree = merge(values, escaped(_without_new_nulls(said, values)))
    tree["data"] = {**tree["data"], **_data(request, data)}
    if "env" in tree:
        tree["env"] = said["env"]  # the example's environment is not one of this data
    set_batches(tree, request, {name: entry.num_rows for name, entry in data.items()})
    return _linked(_ordered(tree, request.config.algorithm), values)


def _ordered(tree: Tree, algorithm: str) -> Tree:
    """The keys that people change first."""
    first = [key for key in (algorithm, "loss_fn", "env", "data", "policy") if key in tree]
    ordered = {key: tree[key] for key in (*first, *(key for key in tree if key not in first))}
    return {**ordered, "policy": {"model_name": tree["policy"]["model_name"], **tree["policy"]}}


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with a value; an empty section is a value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(cast("Tree", value), f"{prefix}{key}.")
        else:
            yield prefix + key, value


# Options of Regimen alone, with the values at which a training is NeMo RL's.
OWN_OPTIONS: dict[str, Any] = {
    "dpo.loss_type": "sigmoid",
    "dpo.label_smoothing": 0.0,
    "dpo.cache_reference_logprobs": True,
    "grpo.max_steps_without_variance": 20,
    "loss_fn.length_normalizer": None,
    "loss_fn.entropy_coefficient": None,
}


def _given_keys(request: ExportRequest) -> Tree:
    """The keys of NeMo RL that Regimen has no field for, as they were written."""
    result: Tree = {}
    for path, value in leaves(request.given):
        if path.startswith(DATA_ENTRIES) or (KNOWN.reason(path) is None and path not in KNOWN.off_values):
            continue
        if path in GONE:
            request.note(f"{path}: left out, NeMo RL 0.6 does not read it")
        else:
            result = merge(result, nest(path, value))
    return result


def _own_keys(request: ExportRequest, data: dict[str, DataSet]) -> Tree:
    """What the typed configuration says, in NeMo RL's keys."""
    config = request.config
    tree: Tree = {
        config.algorithm: config.training.model_dump(),
        "policy": _policy(request),
        "checkpointing": _checkpointing(request, bool(data.get("validation"))),
        "logger": config.logger.model_dump(exclude_none=True),
        "cluster": {"gpus_per_node": max(1, config.cluster.gpus_per_node), "num_nodes": config.cluster.num_nodes},
        "data": {"shuffle": config.data.shuffle},
    }
    length = lookup(request.given, "data.max_input_seq_length")[1]
    if length is not None:
        tree["data"]["max_input_seq_length"] = length
    if config.cluster.gpus_per_node == 0:
        request.note("cluster.gpus_per_node: 0 -> 1, as NeMo RL trains on GPUs only")
    if config.run != RunConfig():
        request.note("run: left out, NeMo RL has no such section")
    if config.grpo is not None:
        tree["loss_fn"] = config.loss_fn.model_dump()
        tree["env"] = _environments(request, data)
    return _without_own_options(tree, request)


def _without_own_options(tree: Tree, request: ExportRequest) -> Tree:
    """The tree without the options that NeMo RL does not have; one that changes the training is named."""
    for path, default in OWN_OPTIONS.items():
        section, key = path.split(".")
        if section in tree and tree[section].pop(key) != default:
            request.note(f"{path}: left out, NeMo RL has no such option")
    return tree


def _policy(request: ExportRequest) -> Tree:
    policy = request.config.policy
    tree = policy.model_dump(
        include={
            "model_name", "train_micro_batch_size", "logprob_batch_size", "max_total_sequence_length", "precision",
            "max_grad_norm", "optimizer", "scheduler", "sequence_packing", "dynamic_batching",
        }
    )  # fmt: skip
    for name in ("sequence_packing", "dynamic_batching"):
        tree[name] = {key: value for key, value in tree[name].items() if value is not None}
    if tree["logprob_batch_size"] is None:
        del tree["logprob_batch_size"]
    tree["tokenizer"] = {
        "name": policy.tokenizer_name,
        "chat_template": _template(request),
        "chat_template_kwargs": policy.tokenizer.chat_template_kwargs,
    }
    given = cast("Tree", lookup(request.given, "policy.dtensor_cfg")[1] or {})
    tree["dtensor_cfg"] = {key: value for key, value in given.items() if key in DTensorConfig.model_fields}
    if policy.activation_checkpointing:
        tree["dtensor_cfg"]["activation_checkpointing"] = True
        request.note("policy.activation_checkpointing -> policy.dtensor_cfg.activation_checkpointing")
    if policy.trust_remote_code:
        request.note("policy.trust_remote_code: left out, NeMo RL trusts a model's code in any case")
    _set_micro_batch_tokens(tree, request)
    if lookup(request.given, "policy.megatron_cfg.enabled")[1]:
        tree["dtensor_cfg"] = {"enabled": False}
        tree["megatron_cfg"] = {"activation_checkpointing": policy.activation_checkpointing}
        request.note(
            "policy.megatron_cfg.enabled: policy.dtensor_cfg.enabled is false with it, and policy.optimizer and "
            "policy.scheduler have no effect; policy.megatron_cfg.optimizer and .scheduler have"
        )
    if request.config.grpo is not None:
        tree["generation"] = _generation(request)
        tree["draft"] = {"enabled": bool(lookup(request.given, "policy.draft.enabled")[1])}
    elif request.is_given("policy.generation"):
        request.note(f"policy.generation: left out, {request.config.algorithm} generates nothing")
    return tree


def _template(request: ExportRequest) -> str:
    if request.chat_template is None:
        return "default"
    path = request.write_text("chat_template.jinja", request.chat_template)
    request.note("policy.tokenizer.chat_template: the template stands in chat_template.jinja")
    return path


def _set_micro_batch_tokens(tree: Tree, request: ExportRequest) -> None:
    """Regimen's micro-batches of so many tokens, in what NeMo RL has for it. DPO takes neither of its two ways."""
    policy, given = request.config.policy, request.config.policy.train_micro_batch_tokens
    if request.config.dpo is not None:
        pairs = max(1, policy.train_token_budget // (2 * policy.max_total_sequence_length))
        for name in ("sequence_packing", "dynamic_batching"):
            if tree[name]["enabled"]:
                tree[name] = {"enabled": False}
                tree["train_micro_batch_size"] = pairs
                request.note(
                    f"policy.{name}: off, as NeMo RL refuses it for DPO; policy.train_micro_batch_size: {pairs}"
                )
        if given is not None:
            tree["train_micro_batch_size"] = pairs
            request.note(f"policy.train_micro_batch_tokens: {given} -> policy.train_micro_batch_size: {pairs}")
        return
    if given is None:
        return
    tokens = max(given, policy.max_total_sequence_length)
    name = "sequence_packing" if tree["sequence_packing"]["enabled"] else "dynamic_batching"
    tree[name] |= {"enabled": True, "train_mb_tokens": tokens}
    if name == "dynamic_batching":
        tree[name].setdefault("sequence_length_round", 64)
    if request.config.grpo is not None:
        tree[name].setdefault("logprob_mb_tokens", tokens)
    request.note(f"policy.train_micro_batch_tokens: {given} -> policy.{name}.train_mb_tokens: {tokens}")


def _generation(request: ExportRequest) -> Tree:
    sampling = request.config.policy.generation
    assert sampling is not None  # the configuration's rules hold it
    tree = sampling.model_dump(include={"max_new_tokens", "temperature", "top_p", "top_k", "stop_token_ids"})
    tree |= {
        "val_temperature": _either(sampling.val_temperature, sampling.temperature),
        "val_top_p": _either(sampling.val_top_p, sampling.top_p),
        "val_top_k": _either(sampling.val_top_k, sampling.top_k),
    }
    backend = lookup(request.given, "policy.generation.backend")[1] or "transformers"
    if backend == "transformers":
        request.note("policy.generation.backend: transformers -> vllm")
    tree["backend"] = "vllm" if backend == "transformers" else backend
    if sampling.precision is not None:
        tree["vllm_cfg"] = {"precision": sampling.precision}
        request.note(f"policy.generation.precision -> policy.generation.vllm_cfg.precision: {sampling.precision}")
    for name, why in (
        ("max_batch_size", "vLLM sizes its batches itself"),
        ("val_max_new_tokens", "validation generates as many tokens as training"),
    ):
        if request.is_given(f"policy.generation.{name}") and getattr(sampling, name) is not None:
            request.note(f"policy.generation.{name}: left out, {why}")
    return tree


def _either(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _checkpointing(request: ExportRequest, validates: bool) -> Tree:
    config = request.config
    tree = config.checkpointing.model_dump()
    if tree["keep_top_k"] is None:
        tree["keep_top_k"] = KEEP_ALL
        request.note(f"checkpointing.keep_top_k: null -> {KEEP_ALL}, as NeMo RL wants a number")
    given = tree["metric_name"]
    if given is None:
        return tree
    prefix, _, name = given.rpartition(":")
    if prefix in ("", "val"):
        tree["metric_name"] = f"val:{METRICS[config.algorithm].get(name, name)}" if validates else None
    if tree["metric_name"] != given:
        request.note(f"checkpointing.metric_name: {given} -> {tree['metric_name'] or 'null, as nothing validates'}")
    return tree


def _environments(request: ExportRequest, data: dict[str, DataSet]) -> Tree:
    """The sections of the environments that the data names."""
    given: Tree = request.given.get("env") or {}
    if any(entry.keys["dataset_name"] == "NemoGymDataset" for entry in data.values()):
        return _gym(request, given)
    tree: Tree = {}
    for name in ENTRIES:
        entry = getattr(request.config.data, name)
        if entry is not None:
            environment = entry.sources[0].env_name or "math"
            options = given.get(environment) or example_values("grpo")["env"].get(environment)
            if options is None:
                raise ConfigError(
                    f"there is no section for the environment {environment!r}",
                    where=f"env.{environment}",
                    expected="the options that NeMo RL gives it",
                    fix=f"write env.{environment}, or data.{name}.env_name=math",
                )
            _refuse_own(environment, options)
            tree[environment] = options
    _note_left_out(request, given, tree)
    return tree


def _refuse_own(environment: str, options: object) -> None:
    """Another environment, verifier or tools than NeMo RL's: it would train on other rewards."""
    for key in ("environment", "reward_function", "mcp_servers"):
        if isinstance(options, dict) and cast("Tree", options).get(key) is not None:
            raise ConfigError(
                f"is Regimen's own, and NeMo RL's environment {environment!r} would play and judge without it",
                where=f"env.{environment}.{key}",
                fix=f"remove env.{environment}.{key}, so that NeMo RL's own verifier judges; or serve it to a gym "
                "(`regimen serve --environment`) and train on NemoGymDataset rows",
            )


def _gym(request: ExportRequest, given: Tree) -> Tree:
    gym = given.get("nemo_gym")
    if not isinstance(gym, dict) or not cast("Tree", gym).get("config_paths"):
        raise ConfigError(
            "gym rows need the gym's own configuration files",
            where="env.nemo_gym.config_paths",
            expected="those of the model server and of each environment that the rows' agent_ref names",
            fix="set env.nemo_gym.config_paths=[responses_api_models/vllm_model/configs/"
            "vllm_model_for_training.yaml,resources_servers/<name>/configs/<name>.yaml]",
        )
    tree: Tree = {"should_use_nemo_gym": True, "nemo_gym": cast("Tree", gym)}
    _note_left_out(request, given, {**tree, "math": None})
    return tree


def _note_left_out(request: ExportRequest, given: Tree, written: Tree) -> None:
    for name in given:
        if name not in written and name != "math":
            request.note(f"env.{name}: left out, no data names it there")


def _data(request: ExportRequest, data: dict[str, DataSet]) -> Tree:
    """The entries of `data`. `data.validation` is null, not absent, so that no demonstration is inherited."""
    tree: Tree = {"train": _entry(request, "train", data), "validation": None}
    if "validation" in data:
        tree["validation"] = _entry(request, "validation", data)
    if request.config.grpo is not None:
        shared = ("processor", "env_name")
        files: Tree = {"prompt_file": None, "system_prompt_file": None}
        tree["default"] = {**files, **{key: tree["train"][key] for key in shared}}
    return tree


def _entry(request: ExportRequest, name: str, data: dict[str, DataSet]) -> Tree:
    given = request.given_of(name)[0]  # the data sets of a mixture have the same
    entry = dict(data[name].keys)
    if request.config.grpo is not None:
        gym = entry["dataset_name"] == "NemoGymDataset"
        typed: DatasetConfig = getattr(request.config.data, name)
        processor = "nemo_gym_data_processor" if gym else "math_hf_data_processor"
        entry |= {"processor": processor, "env_name": "nemo_gym" if gym else typed.sources[0].env_name or "math"}
        # The example that may be inherited splits a part of its data off.
        entry["split_validation_size"] = 0
    for key in PASSED_ON:
        if given.get(key) is not None and key not in ("system_key", "system_prompt"):
            entry[key] = given[key]
    for key in PROMPT_FILES:
        if given.get(key) is not None:
            entry[key] = _copied(request, f"data.{name}.{key}", Path(str(given[key])))
    return entry


def _copied(request: ExportRequest, key: str, path: Path) -> str:
    if not path.is_file():
        raise ConfigError("there is no such file", where=f"{key}: {path}", fix="give its path from here")
    request.inputs.append(path)
    if key.endswith("system_prompt_file") and request.config.grpo is not None:
        request.note(f"{key}: NeMo RL's math processor shows the model no system prompt; use prompt_file for it")
    return request.write_text(f"prompts/{key}.txt", path.read_text(encoding="utf-8"))


def _without_new_nulls(tree: Tree, values: Tree) -> Tree:
    """Nulls are written only where the example values have the key: elsewhere absence says the same."""
    result = tree
    for path, value in list(leaves(tree)):
        if value is None and not lookup(values, path)[0]:
            result = without(result, path)
    return result


def _linked(tree: Tree, values: Tree) -> Tree:
    """The tree with an example's interpolation wherever it gives the value that stands there."""
    links = {path: value for path, value in leaves(values) if isinstance(value, str) and "${" in value}
    linked = tree
    for path, expression in links.items():
        if lookup(tree, path)[0]:
            linked = merge(linked, nest(path, expression))
    resolved = interpolate(Layers(tree=linked))
    for path in links:
        found, plain = lookup(tree, path)
        if found and plain != links[path] and lookup(resolved, path)[1] != plain:
            linked = merge(linked, nest(path, plain))
    return linked

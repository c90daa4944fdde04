"""Load configurations: files, inheritance, overrides, interpolation, key names, types, rules - in this order.

In: a path, a shipped name or a dictionary, and overrides. Out: a frozen, typed configuration with `notes`.
Refuses, with a one-line `ConfigError`: whatever is misspelled, mistyped, contradictory or not implemented.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from regimen.config import normalize, rules
from regimen.config.interpolate import interpolate
from regimen.config.keys import SchemaKeys, select_keys, with_data_defaults
from regimen.config.overrides import apply_overrides
from regimen.config.schema import CollectConfig, EvaluateConfig, IterateConfig, Noted, TrainConfig
from regimen.config.source import Layers, Source, Tree, lookup, read_source
from regimen.errors import ConfigError

Config = TypeVar("Config", bound=Noted)


def load_train_config(source: Source, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a training run, in NeMo RL's vocabulary."""
    layers = _read(source, overrides)
    layers.tree = normalize.unwrap_lists(layers.tree, layers)
    tree = interpolate(layers)
    tree = select_keys(tree, layers, with_data_defaults(SchemaKeys.of(TrainConfig)), nemo_rl=True)
    normalize.require_algorithm(tree, _name(source))
    config = _validate(TrainConfig, normalize.fill(tree, layers), layers)
    rules.check_train(config, layers)
    return _noted(config, layers.notes)


def load_collect_config(source: Source, overrides: Sequence[str] = ()) -> CollectConfig:
    """The configuration of `regimen collect`."""
    config = _load_plain(CollectConfig, normalize.mix(_read(source, overrides)))
    rules.check_collect(config)
    return config


def load_evaluate_config(source: Source, overrides: Sequence[str] = ()) -> EvaluateConfig:
    """The configuration of `regimen evaluate`; `model: x` stands for `models: [x]`."""
    layers = normalize.mix(_read(source, overrides))
    if "model" in layers.tree and "models" not in layers.tree:
        layers.tree["models"] = [layers.tree.pop("model")]
    config = _load_plain(EvaluateConfig, layers)
    rules.check_evaluate(config)
    return config


def load_iterate_config(source: Source, overrides: Sequence[str] = ()) -> IterateConfig:
    """The configuration of `regimen iterate`; its training configuration is loaded too, to fail early."""
    config = _load_plain(IterateConfig, normalize.mix(_read(source, overrides), ("collect", "evaluate")))
    rules.check_iterate(config)
    _check_round(config)
    return config


def dump(config: BaseModel) -> str:
    """The whole configuration as YAML; loading it again gives the same values."""
    tree = config.model_dump()
    if isinstance(config, TrainConfig):
        unused = [name for name in normalize.ALGORITHMS if name != config.algorithm]
        unused += [] if config.grpo else ["loss_fn", "env"]
        tree = {key: value for key, value in tree.items() if key not in unused}
    return yaml.safe_dump(escaped(tree), sort_keys=False, allow_unicode=True, width=120)


def assignment(key: str, value: object) -> str:
    """The override that sets `key` to `value`, whatever characters the value holds."""
    return f"{key}={json.dumps(value)}"


def escaped(node: Any) -> Any:
    """`node` with every `${` in its texts kept from interpolation."""
    if isinstance(node, dict):
        return {key: escaped(value) for key, value in cast("Tree", node).items()}
    if isinstance(node, list):
        return [escaped(item) for item in cast("list[Any]", node)]
    return node.replace("${", "\\${") if isinstance(node, str) else node


# What a round's converted rows are read as where the training configuration names no data set.
_ROUND_DATA = {"sft": "openai_format", "dpo": "PreferenceDataset", "grpo": "NemoGymDataset"}


def _check_round(config: IterateConfig) -> None:
    """Load the training configuration as a round would, with data that a round would write."""
    train = config.train
    given = [*train.overrides, assignment("policy.model_name", config.model)]
    name = lookup(_read(train.config, given).tree, "data.train.dataset_name")[1]
    if name in (None, "Environment"):
        name = _ROUND_DATA.get(config.convert["to"], name)
    # Rows are converted for validation too; tasks to play for training alone.
    for entry in ("train",) if config.convert["to"] == "grpo" else ("train", "validation"):
        given.append(assignment(f"data.{entry}.data_path", f"{entry}.jsonl"))
        given.append(assignment(f"data.{entry}.dataset_name", name))
    trained = load_train_config(train.config, given)
    if trained.algorithm != config.convert["to"]:
        raise ConfigError(
            f"is {config.convert['to']!r}, but train.config trains with {trained.algorithm}",
            where="convert.to",
            fix=f"set convert.to={trained.algorithm}, or another train.config",
        )


def _read(source: Source, overrides: Sequence[str]) -> Layers:
    layers = read_source(source)
    apply_overrides(layers, overrides)
    return layers


def _load_plain(model: type[Config], layers: Layers) -> Config:
    tree = select_keys(interpolate(layers), layers, SchemaKeys.of(model), nemo_rl=False)
    return _noted(_validate(model, tree, layers), layers.notes)


def _noted(config: Config, notes: list[str]) -> Config:
    config.notes.extend(notes)
    return config


def _name(source: Source) -> str:
    return "the configuration given" if isinstance(source, Mapping) else str(source)


def _validate(model: type[Config], tree: Tree, layers: Layers) -> Config:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _readable(error, layers) from error


def _readable(error: ValidationError, layers: Layers) -> ConfigError:
    """The first of pydantic's complaints as one line."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return ConfigError("is missing", where=layers.where(path), fix=f"set {path}")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigError(
        f"is {_shown(first['input'])}",
        where=layers.where(path),
        expected=_WORDS.get(first["type"], message),
    )


_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section with keys below it",
    "model_type": "a section with keys below it",
}


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a section ({', '.join(list(cast('Tree', value))[:3])}, ...)"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

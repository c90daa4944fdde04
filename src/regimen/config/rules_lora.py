"""Rules about `policy.dtensor_cfg.lora_cfg`: which adapters this build trains, and with what.

In: a typed configuration. Out: nothing, or a note about keys that are not read. Refuses, by name, options that have no
meaning here, contradictions, and adapters whose libraries are not installed.
"""

from __future__ import annotations

import importlib.util

from regimen.config.schema import TrainConfig
from regimen.config.schema_policy import LoraConfig
from regimen.config.source import Layers

_SECTION = "policy.dtensor_cfg.lora_cfg"


def check_lora(config: TrainConfig, layers: Layers) -> None:
    """All rules about adapters."""
    section = config.policy.dtensor_cfg.lora_cfg
    if not section.enabled:
        _note_without_effect(section, layers)
        return
    _check_layers(section, layers)
    _check_dropout(section, config, layers)
    _check_libraries(section, layers)
    parallel = config.policy.dtensor_cfg
    if not parallel.enabled:
        return
    if parallel.sequence_parallel and parallel.tensor_parallel_size > 1:
        raise layers.refusal(
            "policy.dtensor_cfg.sequence_parallel",
            "is true, which is not implemented with adapters",
            "false",
            "set policy.dtensor_cfg.sequence_parallel=false; tensor parallel alone takes adapters",
        )
    if section.load_in_4bit:
        raise layers.refusal(
            f"{_SECTION}.load_in_4bit",
            "is true, but weights in 4 bits do not lie in shards in this build",
            "false, or one process",
            f"set {_SECTION}.load_in_4bit=false or policy.dtensor_cfg.enabled=false",
        )


def _check_layers(section: LoraConfig, layers: Layers) -> None:
    if section.match_all_linear and section.target_modules:
        raise layers.refusal(
            f"{_SECTION}.match_all_linear",
            "is true, and target_modules name some layers",
            "one of them",
            f"set {_SECTION}.match_all_linear=false, or leave target_modules empty",
        )
    if section.match_all_linear is False and not section.target_modules and not section.exclude_modules:
        raise layers.refusal(
            f"{_SECTION}.target_modules",
            "is empty, and match_all_linear is false: no layer would get an adapter",
            "names of linear layers, such as q_proj",
            f"set {_SECTION}.match_all_linear=true, or name the layers",
        )


def _check_dropout(section: LoraConfig, config: TrainConfig, layers: Layers) -> None:
    if not section.dropout:
        return
    if config.sft is None:
        raise layers.refusal(
            f"{_SECTION}.dropout",
            f"is {section.dropout}, but {config.algorithm} compares log-probabilities, which must not be random",
            "0",
            f"set {_SECTION}.dropout=0",
        )
    if section.dropout_position == "post":
        raise layers.refusal(
            f"{_SECTION}.dropout_position",
            "is 'post', which is not implemented: peft drops inputs of an adapter, not its outputs",
            "'pre' where dropout is not 0",
            f"set {_SECTION}.dropout_position=pre, or {_SECTION}.dropout=0",
        )


def _check_libraries(section: LoraConfig, layers: Layers) -> None:
    wanted = {"peft": ("enabled", "lora")}
    if section.load_in_4bit:
        wanted["bitsandbytes"] = ("load_in_4bit", "qlora")
    for module, (key, extra) in wanted.items():
        if importlib.util.find_spec(module) is None:
            raise layers.refusal(
                f"{_SECTION}.{key}",
                f"needs the package {module}, which is not installed",
                None,
                f"pip install 'regimen-rl[{extra}]', or set {_SECTION}.{key}=false",
            )


def _note_without_effect(section: LoraConfig, layers: Layers) -> None:
    names = section.changed()
    if section.match_all_linear:  # as NeMo RL's own files have it
        names.remove("match_all_linear")
    if names:
        listed = ", ".join(f"{_SECTION}.{name}" for name in names)
        layers.notes.append(f"no effect here, as {_SECTION}.enabled is false: {listed}")

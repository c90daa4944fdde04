"""Rules about `policy.dtensor_cfg` and `cluster`: what many processes can do in this build.

In: a typed configuration. Out: nothing, or notes about keys that one process does not read. Refuses, by name, ways of
dividing a model that are not implemented.
"""

from __future__ import annotations

from typing import Any

from regimen.config.schema import TrainConfig
from regimen.config.schema_policy import DTensorConfig
from regimen.config.source import Layers

_SECTION = "policy.dtensor_cfg"
# Key -> the values that leave it off.
_NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "context_parallel_size": (1,),
    "expert_parallel_size": (None, 1),
    "dp_replicate_size": (None, 1),
    "custom_parallel_plan": (None,),
}


def check_processes(config: TrainConfig, layers: Layers) -> None:
    """All rules between `policy.dtensor_cfg` and `cluster`."""
    section, cluster = config.policy.dtensor_cfg, config.cluster
    if not section.enabled:
        _note_without_effect(section, layers)
        if cluster.num_nodes > 1 or cluster.gpus_per_node > 1 or (cluster.num_processes or 1) > 1:
            layers.notes.append("no effect here, as the local policy is one process: cluster")
        return
    for name, off in _NOT_IMPLEMENTED.items():
        value = getattr(section, name)
        if value not in off:
            raise layers.refusal(
                f"{_SECTION}.{name}",
                f"{value!r} is not implemented in this build",
                str(off[-1] or "null"),
                f"set {_SECTION}.{name}={off[-1] or 'null'}",
            )
    if config.policy.torch_compile and section.tensor_parallel_size > 1:
        raise layers.refusal(
            "policy.torch_compile",
            f"is true, but torch.compile does not take layers that are divided ({_SECTION}.tensor_parallel_size)",
            "false",
            f"set policy.torch_compile=false, or {_SECTION}.tensor_parallel_size=1",
        )
    if section.sequence_parallel and section.tensor_parallel_size == 1:
        layers.notes.append(f"no effect here, as {_SECTION}.tensor_parallel_size is 1: {_SECTION}.sequence_parallel")


def _note_without_effect(section: DTensorConfig, layers: Layers) -> None:
    names = [name for name in section.changed() if name != "lora_cfg"]
    if names:
        listed = ", ".join(f"{_SECTION}.{name}" for name in names)
        layers.notes.append(f"no effect here, as {_SECTION}.enabled is false: {listed}")

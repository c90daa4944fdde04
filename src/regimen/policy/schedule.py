"""Optimisers and learning-rate schedules from NeMo RL's configuration lists.

In: a dotted torch class name with its arguments; a list of `{name, kwargs}` with an optional `{milestones}`.
Refuses: a class outside torch.optim, arguments it does not take, more than one scheduler without milestones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from regimen.errors import ConfigError

_FUSED = ("Adam", "AdamW", "SGD")


def build_optimizer(model: torch.nn.Module, name: str, kwargs: dict[str, Any]) -> Optimizer:
    """The optimiser `name` over the model's trainable parameters; the fused kernel where the class has one."""
    kind = _torch_class(name, "torch.optim.", torch.optim, Optimizer, "policy.optimizer.name")
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
    if kind.__name__ in _FUSED and "foreach" not in arguments:
        arguments = {"fused": True, **arguments}
    try:
        return kind(_groups(model), **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error), where="policy.optimizer.kwargs") from error


def build_schedule(optimizer: Optimizer, stages: list[dict[str, Any]] | None) -> lr_scheduler.LRScheduler:
    """The schedule that `stages` describe; a constant rate for None."""
    if not stages:
        return lr_scheduler.LambdaLR(optimizer, _constant)
    milestones: list[int] | None = None
    schedules: list[lr_scheduler.LRScheduler] = []
    for stage in stages:
        if "milestones" in stage:
            milestones = [int(step) for step in stage["milestones"]]
            continue
        schedules.append(_stage(optimizer, stage))
    if len(schedules) == 1:
        return schedules[0]
    if milestones is None or len(milestones) != len(schedules) - 1:
        raise ConfigError(
            f"{len(schedules)} schedulers with milestones {milestones}",
            where="policy.scheduler",
            expected=f"{{milestones: [...]}} with {len(schedules) - 1} steps",
        )
    return lr_scheduler.SequentialLR(optimizer, schedules, milestones)


def _groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters, in one group for each way of being sharded: a fused kernel takes no mixture."""
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(str(getattr(parameter, "device_mesh", None)), []).append(parameter)
    return [{"params": parameters} for parameters in groups.values()]


def _stage(optimizer: Optimizer, stage: dict[str, Any]) -> lr_scheduler.LRScheduler:
    kind = _torch_class(
        stage["name"], "torch.optim.lr_scheduler.", lr_scheduler, lr_scheduler.LRScheduler, "policy.scheduler"
    )
    try:
        return kind(optimizer, **stage.get("kwargs", {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error), where=f"policy.scheduler {stage['name']}") from error


def _constant(_: int) -> float:
    return 1.0


def _torch_class(name: str, prefix: str, module: Any, base: type, where: str) -> Any:
    kind = getattr(module, name.removeprefix(prefix), None) if name.startswith(prefix) else None
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ConfigError(f"unknown class {name!r}", where=where, expected=f"a class of {prefix.rstrip('.')}")
    return kind

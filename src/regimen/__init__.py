"""Regimen: from a gym's rollouts to a measurably better model.

The public names below are imported when they are first used, so that `import regimen` is quick and needs no torch.
`regimen.convert` is the room of that name and, when called, the pipeline:
`regimen.convert("rollouts.jsonl", to="sft", out=Path("data"))`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regimen.gym.environment import Environment, load_environment
    from regimen.pipelines.collect import collect
    from regimen.pipelines.convert import convert
    from regimen.pipelines.evaluate import evaluate
    from regimen.pipelines.inspect import inspect_rollouts as inspect
    from regimen.pipelines.iterate import iterate
    from regimen.pipelines.train import train
    from regimen.rollouts.reader import read_rollouts

__version__ = "0.1.0"

__all__ = [
    "Environment",
    "collect",
    "convert",
    "evaluate",
    "inspect",
    "iterate",
    "load_environment",
    "read_rollouts",
    "train",
]

PUBLIC = {
    "Environment": "regimen.gym.environment:Environment",
    "collect": "regimen.pipelines.collect:collect",
    "evaluate": "regimen.pipelines.evaluate:evaluate",
    "inspect": "regimen.pipelines.inspect:inspect_rollouts",
    "iterate": "regimen.pipelines.iterate:iterate",
    "load_environment": "regimen.gym.environment:load_environment",
    "read_rollouts": "regimen.rollouts.reader:read_rollouts",
    "train": "regimen.pipelines.train:train",
}


class _ConvertRoom(ModuleType):
    """The package `regimen.convert`, callable as the pipeline of the same name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Convert rollouts into training rows; see `regimen.pipelines.convert.convert`."""
        return importlib.import_module("regimen.pipelines.convert").convert(*arguments, **options)


class _Regimen(ModuleType):
    """This package; it makes `regimen.convert` callable at the moment the import system binds it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "convert" and isinstance(value, ModuleType):
            value.__class__ = _ConvertRoom
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name == "convert":
        return importlib.import_module("regimen.convert")
    if name not in PUBLIC:
        raise AttributeError(f"module 'regimen' has no attribute {name!r}")
    module, attribute = PUBLIC[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


sys.modules[__name__].__class__ = _Regimen

"""The table of replaceable parts: kind -> name -> "module:attribute", imported when used.

Adding a part is one line here. An unknown name raises `ConfigError` naming the known ones.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from regimen.errors import ConfigError

PARTS: dict[str, dict[str, str]] = {
    "algorithm": {
        "sft": "regimen.algorithms.sft:SFT",
        "dpo": "regimen.algorithms.dpo:DPO",
        "grpo": "regimen.algorithms.grpo:GRPO",
    },
    "policy": {
        "local": "regimen.policy.local:LocalPolicy",
        "dtensor": "regimen.policy.dtensor:DTensorPolicy",
    },
    "generation": {
        "transformers": "regimen.generation.transformers:TransformersGeneration",
        "fake": "regimen.generation.fake:FakeGeneration",
    },
    "tracker": {
        "jsonl": "regimen.tracking.jsonl:JsonLinesTracker",
        "tensorboard": "regimen.tracking.tensorboard:TensorBoardTracker",
        "wandb": "regimen.tracking.wandb:WandbTracker",
        "mlflow": "regimen.tracking.mlflow:MlflowTracker",
    },
    "export": {
        "nemo-rl": "regimen.convert.export.nemo_rl:export_nemo_rl",
        "trl": "regimen.convert.export.trl:export_trl",
    },
}


def nearest(name: str, known: list[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint for an error: the nearest known name; None when nothing is close."""
    close = nearest(name, list(known))
    return f"did you mean {close!r}?" if close else None


def resolve(kind: str, name: str) -> Any:
    """Import and return the part `name` of `kind`; raises `ConfigError` for an unknown name."""
    table = PARTS[kind]
    if name not in table:
        raise ConfigError(
            f"unknown {kind} {name!r}",
            expected=f"one of {', '.join(sorted(table))}",
            fix=did_you_mean(name, table),
        )
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)

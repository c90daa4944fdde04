"""LoRA adapters without loading any: which layers they stand beside, and the folders that peft writes.

In: names of layers, folders. Out: whether a name is meant; whether a folder holds adapters, and the model below them.
Refuses: an adapter_config.json that names no model, or one that is not there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from regimen.errors import PolicyError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base_model_name_or_path"


def is_meant(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits the layer's name, its last part or its end."""
    last = name.rpartition(".")[2]
    return any(fnmatchcase(name, p) or fnmatchcase(last, p) or name.endswith(f".{p}") for p in patterns)


def holds_adapters(folder: str | Path) -> bool:
    """Whether the folder holds adapters and no model of its own."""
    path = Path(folder)
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(folder: str | Path) -> str:
    """The model that the adapters of `folder` were trained on. Raises `PolicyError` where it is not known."""
    path = Path(folder) / ADAPTER_CONFIG
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"cannot be read ({error})", where=str(path), expected="peft's adapter_config.json") from None
    base: Any = cast("dict[str, Any]", settings).get(BASE) if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise PolicyError(
            f"has no {BASE}",
            where=str(path),
            expected="the model that the adapters were trained on",
            fix="name it with: regimen merge --base",
        )
    if Path(base).is_absolute() and not (Path(base) / "config.json").is_file():
        raise PolicyError(
            f"the adapters were trained on {base}, which holds no model now",
            where=str(path),
            fix=f"put the model back, set {BASE}, or name it with: regimen merge --base",
        )
    return base

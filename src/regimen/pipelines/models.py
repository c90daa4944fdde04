"""Names of models: a folder, a hub name, or the small model that the quickstart installs; and memory after a model.

Refuses a path that holds no model, before a hub is asked for it; sequences longer than a model was made for; adapters
where a whole model is needed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regimen.adapters import base_of, holds_adapters
from regimen.config.schema_policy import PolicyConfig
from regimen.errors import ConfigError, UsageError
from regimen.pipelines.small_model import NAME, small_model
from regimen.tokens.template import Renderer


def resolve_model(name: str) -> str:
    """`name`, or the folder of the small model when its name is given. Raises `UsageError` for a path without one."""
    if name == NAME:
        return str(small_model())
    check_models([name])
    return name


def free_memory() -> None:
    """Give the memory of models that are done with back to the system.

    Models hold cycles, so their weights wait for the collector; and the C library of Linux keeps freed pages between
    others that are in use, gigabytes after a training.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries keep less
        if trim is not None:
            trim(0)


def check_models(names: Sequence[str]) -> None:
    """Refuse paths that hold no model; names that are no path are left to the model hub."""
    for name in names:
        path = Path(name)
        looks_like_path = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
        if holds_adapters(path):
            check_models([base_of(path)])
        elif (path.exists() or looks_like_path) and not (path / "config.json").is_file():
            seen = "holds no config.json" if path.is_dir() else "is no folder" if path.exists() else "no such folder"
            raise UsageError(seen, where=name, expected="a Hugging Face model folder")


def refuse_adapters(name: str, where: str) -> None:
    """Raise `ConfigError` for a folder of adapters: training begins with one set of weights."""
    if holds_adapters(name):
        raise ConfigError(
            f"{name} holds LoRA adapters, not a model",
            where=where,
            expected="a model folder or a hub name",
            fix=f"merge them first: regimen merge {name} --output MERGED, and set {where}=MERGED",
        )


def check_length(name: str, length: int, where: str, *, trust: bool = False) -> None:
    """Raise `ConfigError` when sequences of `length` exceed the positions of the model; no weights are loaded."""
    limit = _max_positions(config_of(resolve_model(name), trust))
    if limit is not None and length > limit:
        raise ConfigError(
            f"is {length}, but the model {name} has {limit} positions",
            where=where,
            expected=f"at most {limit}",
            fix=f"set {where}={limit}",
        )


def check_positions(policy: PolicyConfig) -> None:
    """`check_length` of what training is to read."""
    where = "policy.max_total_sequence_length"
    check_length(policy.model_name, policy.max_total_sequence_length, where, trust=policy.trust_remote_code)


def load_renderer(policy: PolicyConfig) -> Renderer:
    """The tokenizer and the chat template that training reads with."""
    return Renderer.load(
        resolve_model(policy.tokenizer_name),
        policy.tokenizer.template,
        policy.tokenizer.chat_template_kwargs,
        trust_remote_code=policy.trust_remote_code,
    )


def config_of(model: str, trust: bool) -> dict[str, Any]:
    """What config.json says, of a folder or of the hub; {} when it cannot be read: loading will say why.

    Of a folder of adapters, that of the model below them.
    """
    if holds_adapters(model):
        model = base_of(model)
    try:
        if Path(model).is_dir():
            return json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(model, trust_remote_code=trust).to_dict()
    except (OSError, ValueError, KeyError):
        return {}


def _max_positions(config: dict[str, Any]) -> int | None:
    """`max_position_embeddings`, or more where the rotary positions are scaled from a smaller number."""
    config = config.get("text_config") or config
    limit = config.get("max_position_embeddings")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
    if limit is not None and original and factor:
        return max(limit, int(original * factor))
    return limit

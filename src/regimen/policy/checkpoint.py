"""Model folders and training state on disk: Hugging Face folders and safe tensors, written under a temporary name.

In: a model, training state. Out: files that appear whole or not at all. Refuses: pickled code (`weights_only`).
A disk that is full is a `RunError`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from regimen.errors import RunError


def save_model(
    model: torch.nn.Module, folder: Path, dtype: torch.dtype, tensors: dict[str, torch.Tensor] | None = None
) -> None:
    """Write config and weights (cast to `dtype`) into `folder`, whole or not at all.

    `tensors`: the whole parameters by name, where those of `model` are shards.
    """
    parameters = dict(model.named_parameters()) if tensors is None else tensors  # tied weights stand once
    named = {**dict(model.named_buffers()), **parameters}
    state = {name: named[name].detach().to(dtype) for name in model.state_dict() if name in named}
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    own_dtype = model.config.dtype  # type: ignore[union-attr]
    try:
        with _writing(folder):
            model.save_pretrained(temporary, state_dict=state)  # type: ignore[operator]
        _name_dtype(temporary / "config.json", dtype)
        _replace_folder(temporary, folder)
    finally:
        model.config.dtype = own_dtype  # type: ignore[union-attr]
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Torch and safetensors report a full disk in their own ways: one line instead."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"cannot be written ({reason})", where=str(path), fix="free space on the disk") from error


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Say in the config what the weights are: transformers writes the dtype of the model in memory."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write training state (tensors and plain values) whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with _writing(path):
            torch.save(state, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; no pickled code is run. Raises `RunError` when it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"the training state cannot be read ({reason})", where=str(path)) from error


def _replace_folder(temporary: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)

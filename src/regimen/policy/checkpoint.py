"""Model folders and training state on disk: Hugging Face folders and safe tensors, written under a temporary name.

In: a model, training state. Out: files that appear whole or not at all. (A checkpoint's folder is handed to the disk as
a whole, by whoever gives it its name.)
A training state is one safetensors file: its tensors by number, and in the header's metadata a JSON tree in which
they stand, so that any reader of safetensors can look into it and nothing of it is a program.
Refuses: values that are neither tensors nor plain; files of another kind. A disk that is full is a `RunError`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from regimen.errors import RunError, first_line

TREE = "regimen_state"
# Plain values that JSON has no word for are objects with one of these keys, which no state uses as a name.
TENSOR, TUPLE, ITEMS, COUNTER = "__tensor__", "__tuple__", "__items__", "__counter__"
_MARKS = (TENSOR, TUPLE, ITEMS, COUNTER)


def model_tensors(
    model: torch.nn.Module,
    dtype: torch.dtype,
    parameters: Mapping[str, torch.Tensor] | None = None,
    *,
    copy: bool = False,
) -> dict[str, torch.Tensor]:
    """The weights that a model folder holds, cast to `dtype`, tied ones once; `copy`: copies, on the CPU.

    `parameters`: the whole ones by name, where those of `model` are shards.
    """
    named = {**dict(model.named_buffers()), **(dict(model.named_parameters()) if parameters is None else parameters)}
    state = {name: named[name].detach().to(dtype) for name in model.state_dict() if name in named}
    return cast("dict[str, torch.Tensor]", copied(state)) if copy else state


def save_model(
    model: torch.nn.Module,
    folder: Path,
    dtype: torch.dtype,
    tensors: dict[str, torch.Tensor] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write config and weights (cast to `dtype`, or the `tensors` given) into `folder`, whole or not at all.

    `beside` writes what else belongs into the folder.
    """
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    own_dtype = model.config.dtype  # type: ignore[union-attr]
    try:
        with _writing(folder):
            state = model_tensors(model, dtype) if tensors is None else tensors
            model.save_pretrained(temporary, state_dict=state)  # type: ignore[operator]
        _name_dtype(temporary / "config.json", dtype)
        if beside is not None:
            beside(temporary)
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
        raise RunError(
            f"cannot be written ({first_line(error)})", where=str(path), fix="free space on the disk"
        ) from error


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Say in the config what the weights are: transformers writes the dtype of the model in memory."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with _writing(path):
            save_file(tensors, temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write training state (tensors and plain values) whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _encoded(state, tensors, str(path))
    save_tensors(tensors, path, {TREE: json.dumps(tree)})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote. Raises `RunError` when it cannot be read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(TREE)
            if text is None:
                raise ValueError(f"its metadata has no {TREE!r}")
            names = cast("list[str]", file.keys())
            return _decoded(json.loads(text), {name: file.get_tensor(name) for name in names})
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(f"the training state cannot be read ({first_line(error)})", where=str(path)) from error


def copied(value: Any) -> Any:
    """`value` with every tensor in memory of its own on the CPU, so that training may go on over it."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Counter):
        return Counter(cast("Counter[Any]", value))
    if isinstance(value, dict):
        return {key: copied(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in cast("list[Any]", value))
    return value


def _encoded(value: Any, tensors: dict[str, torch.Tensor], where: str) -> Any:
    """`value` as JSON has it; its tensors go into `tensors`, contiguous and each with memory of its own."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous()
        return {TENSOR: name}
    if isinstance(value, list):
        return [_encoded(item, tensors, where) for item in cast("list[Any]", value)]
    if isinstance(value, tuple):
        return {TUPLE: [_encoded(item, tensors, where) for item in cast("tuple[Any, ...]", value)]}
    if isinstance(value, dict):
        return _encoded_dict(cast("dict[Any, Any]", value), tensors, where)
    raise RunError(f"a {type(value).__name__} cannot be kept in a training state", where=where)


def _encoded_dict(value: dict[Any, Any], tensors: dict[str, torch.Tensor], where: str) -> dict[str, Any]:
    """Text keys as JSON has them; optimisers number their parameters, and a Counter must come back as one."""
    if isinstance(value, Counter):
        return {COUNTER: [[_encoded(key, tensors, where), count] for key, count in value.items()]}
    if all(isinstance(key, str) and key not in _MARKS for key in value):
        return {key: _encoded(item, tensors, where) for key, item in value.items()}
    return {ITEMS: [[_encoded(key, tensors, where), _encoded(item, tensors, where)] for key, item in value.items()]}


def _decoded(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decoded(item, tensors) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    tree = cast("dict[str, Any]", node)
    if len(tree) == 1:
        if TENSOR in tree:
            return tensors[tree[TENSOR]]
        if TUPLE in tree:
            return tuple(_decoded(tree[TUPLE], tensors))
        for mark, kind in ((ITEMS, dict[Any, Any]), (COUNTER, Counter[Any])):
            if mark in tree:
                return kind({_decoded(key, tensors): _decoded(item, tensors) for key, item in tree[mark]})
    return {key: _decoded(item, tensors) for key, item in tree.items()}


def _replace_folder(temporary: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)

"""Training state in shards, by `torch.distributed.checkpoint`: each process writes its own, any number reads them.

In: a model and an optimiser whose tensors may be shards. Out: a folder of their own.
Refuses: shards that cannot be read or belong to another model (`RunError`). The library's index of the shards is
pickled: resume only runs of your own.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from regimen.errors import RunError

# One entry for each parameter, so that neither its shard nor its parameter group matters.
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)
# Not strict, as frozen weights are not there; `load` has refused shards that lack anything else.
_RESTORING = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)


def save_shards(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write trained weights and optimiser; every process must call this."""
    _write(_state(model, optimizer), folder, None)


def shards_writer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, group: Any) -> Callable[[Path], None]:
    """A function that writes what stands now, from a copy in the processor's memory, while training goes on.

    Every process must call it; `group` carries what they say to each other meanwhile.
    """
    copy = BlockingAsyncStager().stage(_state(model, optimizer))
    return lambda folder: _write(copy, folder, group)


def _write(state: dict[str, Any], folder: Path, group: Any) -> None:
    try:
        with _quiet():
            save(state, checkpoint_id=folder, process_group=group)
    except (CheckpointException, OSError, RuntimeError) as error:
        raise _refusal("written", error, folder) from error


def load_shards(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read weights and optimiser into shards of this run; every process must call this."""
    state = _state(model, optimizer)
    try:
        with _quiet():
            load(state, checkpoint_id=folder)
    except (CheckpointException, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise _refusal("read", error, folder) from error
    found = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
    set_state_dict(model, optimizer, **found, options=_RESTORING)


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer, options=_OPTIONS)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:  # it stands in the model's own folder
            weights.pop(name)
    return {"model": weights, "optimizer": moments}


def _quiet() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _refusal(what: str, error: BaseException, folder: Path) -> RunError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return RunError(f"the training state cannot be {what} ({lines[-1]})", where=str(folder))

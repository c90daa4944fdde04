"""The random states of a process, to be kept with a checkpoint; and runs that are equal bit for bit.

In: a seed. Out: seeded generators, a state of plain values and tensors, deterministic kernels.
Regimen's own choices are functions of (run, step, task, repeat, turn) and need none of this; libraries, environments
and kernels of other hands may.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# cuBLAS chooses its algorithm by the work space it finds; with a fixed one the choice is fixed too.
CUBLAS_SETTING = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Where the global generators stand: tensors and plain values."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    keys = torch.from_numpy(np.asarray(numpy_state["state"]["key"], np.int64))
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": keys, "pos": int(numpy_state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the global generators where `random_state` found them. CUDA's are left when their number differs."""
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    keys = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy_state, "state": {"key": keys, "pos": numpy_state["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def deterministic_kernels(enabled: bool) -> Generator[None]:
    """While the block runs, torch uses kernels that give the same bits each time, or raises where it has none."""
    if not enabled:
        yield
        return
    os.environ.setdefault(*CUBLAS_SETTING)  # read when the first CUDA handle is made
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark

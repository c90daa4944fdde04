from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from regimen.policy.checkpoint import load_state, save_state
from regimen.policy.randomness import deterministic_kernels, random_state, restore_random_state, seed_everything


def draws() -> list[float]:
    values = [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]
    return [*values, *torch.rand(3).tolist()]


@pytest.fixture(autouse=True)
def keep_state():
    state = random_state()
    yield
    restore_random_state(state)


def test_a_state_that_was_on_disk_gives_the_same_draws(tmp_path: Path) -> None:
    seed_everything(3)
    draws()  # leaves half of a pair of normal numbers waiting
    save_state({"random": random_state()}, tmp_path / "state.safetensors")
    expected = draws()
    assert draws() != expected
    restore_random_state(load_state(tmp_path / "state.safetensors")["random"])
    assert draws() == expected


def test_seeds_decide_all_generators() -> None:
    seed_everything(3)
    first = draws()
    seed_everything(4)
    assert not set(draws()) & set(first)
    seed_everything(3)
    assert draws() == first


def test_kernels_are_deterministic_only_inside_the_block() -> None:
    with deterministic_kernels(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_kernels(True):
        assert torch.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError, match="deterministic"):  # torch has no deterministic kernel for it
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    assert not torch.are_deterministic_algorithms_enabled()

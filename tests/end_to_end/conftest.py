"""What runs of tiny models need."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch


@pytest.fixture
def one_thread() -> Generator[None]:
    """Models this small gain nothing from more threads, and lose much where threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""Drawing tokens: the inverse of the cumulative distribution, by hand and against the plain formula."""

from __future__ import annotations

import pytest
import torch

from regimen.generation.base import Sampling
from regimen.generation.draw import draw

PLAIN = Sampling(temperature=1.0)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_draw_finds_its_token() -> None:
    logprobs = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(5, 1)
    assert draw(logprobs, [PLAIN] * 5, numbers(0.0, 0.05, 0.25, 0.55, 0.999)).tolist() == [0, 0, 1, 2, 3]


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    logprobs = torch.full((3, 700), -torch.inf)
    logprobs[:, 300], logprobs[:, 600] = torch.tensor(0.5).log(), torch.tensor(0.5).log()
    assert draw(logprobs, [PLAIN] * 3, numbers(0.0, 0.49, 1 - 1e-16)).tolist() == [300, 300, 600]


@pytest.mark.parametrize("size", [3, 256, 257, 49_152])
def test_blocks_do_not_show(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logprobs = (3 * torch.randn(64, size, generator=generator)).log_softmax(-1)
    draws = torch.rand(64, dtype=torch.float64, generator=generator)
    cumulative = logprobs.double().exp().cumsum(-1)
    point = draws * cumulative[:, -1]
    chosen = draw(logprobs, [PLAIN] * 64, draws)
    # The token whose interval holds the point, up to what float32 sums of a block are off.
    rows = torch.arange(64)
    below = torch.where(chosen > 0, cumulative[rows, (chosen - 1).clamp(min=0)], 0.0)
    assert (below <= point + 1e-6).all()
    assert (cumulative[rows, chosen] >= point - 1e-6).all()


def test_greedy_rows_stand_beside_sampled_ones() -> None:
    logprobs = torch.tensor([[0.6, 0.4]]).log().repeat(2, 1)
    assert draw(logprobs, [Sampling(temperature=0.0), PLAIN], numbers(0.9, 0.9)).tolist() == [0, 1]


def test_cuts_leave_the_most_likely() -> None:
    logprobs = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(3, 1)
    cuts = [Sampling(top_k=1), Sampling(top_p=0.5), Sampling(top_k=3)]
    # Left: token 3; tokens 2 and 3, of 3/7 and 4/7; tokens 1 to 3, of 2/9, 3/9 and 4/9.
    assert draw(logprobs, cuts, numbers(0.0, 0.4, 0.21)).tolist() == [3, 2, 1]

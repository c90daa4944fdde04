"""Drawing one token from each row of log-probabilities.

In: log-probabilities, how each row samples, one random number for each. Out: token ids. The draws alone decide, so a
row's token does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regimen.generation.base import Sampling

_BLOCK = 256  # tokens summed in one go when drawing


def draw(logprobs: Tensor, samplings: Sequence[Sampling], draws: Tensor) -> Tensor:
    """The token of each row, `[n]` int64, from log-probabilities `[n, V]` and numbers in [0, 1) `[n]` float64.

    Each row's cumulative distribution is inverted at its draw; at temperature 0 the most likely token is taken.

    The distribution is summed in blocks: the draw's block is found first, then the token within it, so that nothing of
    the vocabulary's size is held in float64.
    """
    if all(s.temperature == 0 for s in samplings):
        return logprobs.argmax(-1)
    restricted = logprobs
    if any(s.top_p < 1 or s.top_k for s in samplings):
        restricted = torch.stack([_restrict(row, s) for row, s in zip(logprobs, samplings, strict=True)])
    probabilities = torch.nn.functional.pad(restricted.exp(), (0, -restricted.shape[1] % _BLOCK))
    blocks = probabilities.unflatten(1, (-1, _BLOCK))
    cumulative = blocks.sum(-1).double().cumsum(-1)
    point = draws * cumulative[:, -1]
    block = _first_beyond(cumulative, point)
    rows = torch.arange(len(block), device=block.device)
    within = blocks[rows, block].double().cumsum(-1)
    before = torch.where(block > 0, cumulative[rows, (block - 1).clamp(min=0)], 0.0)
    chosen = block * _BLOCK + _first_beyond(within, point - before)
    greedy = torch.tensor([s.temperature == 0 for s in samplings], device=logprobs.device)
    return torch.where(greedy, logprobs.argmax(-1), chosen) if greedy.any() else chosen


def _first_beyond(cumulative: Tensor, point: Tensor) -> Tensor:
    """The first index of each row whose sum lies beyond `point`; rounding never leads to one of probability 0."""
    found = torch.searchsorted(cumulative, point[:, None], right=True).squeeze(1)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).squeeze(1)  # none after it adds anything
    return torch.minimum(found, last)


def _restrict(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Keep the `top_k` most likely tokens and, of those, the fewest whose probability reaches `top_p`."""
    ordered, index = logprobs.sort(descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
    before = ordered.exp().cumsum(-1) - ordered.exp()
    keep &= before < sampling.top_p
    return torch.full_like(logprobs, -torch.inf).scatter(0, index, ordered.masked_fill(~keep, -torch.inf))

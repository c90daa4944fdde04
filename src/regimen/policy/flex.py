"""Attention over a token forest on a GPU, by torch's FlexAttention: one fused kernel that skips what nobody sees.

In: queries, keys and values of T tokens in pre-order, `end` and `depth` of the forest. Out: for every token, attention
over exactly the tokens it sees, within a sliding window where a layer has one.
Refuses nothing: `is_usable` says where the kernel cannot run, and the caller takes a dense mask there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # tokens; the kernel skips or mixes squares of this size
_LEAST_HEAD_SIZE = 16  # of the kernel's matrix products

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def is_usable(query: Tensor) -> bool:
    """Whether the compiled kernel takes `query`; uncompiled, it would hold all scores at once."""
    return query.device.type == "cuda" and query.shape[-1] >= _LEAST_HEAD_SIZE and _has_triton()


def mask_function(end: Tensor, depth: Tensor, window: int | None) -> MaskFunction:
    """What FlexAttention asks of each pair of tokens: does `query` see `key`? `end` and `depth` are `[T]` int32."""

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    if window is None:
        return sees

    def sees_in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(batch, head, query, key) & (depth[query] - depth[key] < window)

    return sees_in_window


def block_mask(end: np.ndarray, depth: np.ndarray, window: int | None, device: torch.device) -> BlockMask:
    """The mask of a forest in blocks of `BLOCK` tokens, without ever holding `[T, T]`."""
    partial, full = blocks(end, depth, window)
    partial_counts, partial_columns = _listed(partial, device)
    full_counts, full_columns = _listed(full, device)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int32)).to(device)

    return BlockMask.from_kv_blocks(
        partial_counts,
        partial_columns,
        full_counts,
        full_columns,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_function(tensor(end), tensor(depth), window),
        seq_lengths=(len(end), len(end)),
    )


def blocks(end: np.ndarray, depth: np.ndarray, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks hold pairs that see each other and need the mask, and which are seen as a whole: `[n, n]` bool each.

    Row and column count blocks of queries and keys. A key below the diagonal's block comes before every query of the
    row, so that only its `end` decides. With a window, a block may be called partial that holds nothing.
    """
    starts = np.arange(0, len(end), BLOCK)
    stops = np.minimum(starts + BLOCK, len(end))
    before = starts[None, :] < starts[:, None]
    seen = before & (np.maximum.reduceat(end, starts)[None, :] > starts[:, None])
    full = before & (np.minimum.reduceat(end, starts)[None, :] >= stops[:, None])
    if window is not None:
        least, most = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
        seen &= least[:, None] - most[None, :] < window
        full &= most[:, None] - least[None, :] < window
    np.fill_diagonal(seen, True)
    return seen & ~full, full


def flex_forest_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q `[1, Hq, T, D]`, k and v `[1, Hkv, T, D]` -> `[1, Hq, T, D]`; compiled on a GPU."""
    attend: Any = _compiled() if query.device.type == "cuda" else flex_attention
    return attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=key.shape[1] != query.shape[1])


def _listed(chosen: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many columns of each row are chosen, and all columns with those first: `[1, 1, n]`, `[1, 1, n, n]` int32."""
    columns = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    counts = chosen.sum(axis=1, dtype=np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(columns)[None, None].to(device)


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


@functools.cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()

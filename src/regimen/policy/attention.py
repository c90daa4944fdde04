"""Attention over a token forest, as an attention implementation of transformers.

In: queries, keys and values of T tokens in pre-order, and an `AttentionPlan` made once per forest.
Out: for every token, attention over exactly the tokens it sees (`k <= q < end[k]`).

On a CPU the plan is a list of rectangles: each unbranched run of tokens attends to itself causally, and everything
below it attends to all of it, without a mask. Small subtrees are one masked rectangle. Rectangles that share rows are
merged by their log-sum-exp, in the backward pass too, so no key is ever copied per sequence. A GPU has one kernel for
it all (`regimen.policy.flex`). A layer with a sliding window on a CPU, and a GPU that cannot compile the kernel, use
one dense mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regimen.errors import PolicyError
from regimen.policy.flex import block_mask, flex_forest_attention, is_usable
from regimen.tokens.forest import Forest

ATTENTION_NAME = "regimen_forest"
_SMALL_SUBTREE = 192  # rows; below this one masked call costs less than several exact ones

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Queries `[query_start, query_stop)` attend to keys `[key_start, key_stop)`."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    is_causal: bool
    mask: Tensor | None = None  # [queries, keys] float32, 0 or -inf


@dataclass(slots=True)
class AttentionPlan:
    """What attention needs to know of a forest; masks are made only when a layer asks for them."""

    rectangles: list[Rectangle]
    end: np.ndarray
    depth: np.ndarray
    _dense: dict[tuple[int | None, torch.device], Tensor] = field(default_factory=dict)
    _blocks: dict[tuple[int | None, torch.device], BlockMask] = field(default_factory=dict)

    def dense_mask(self, window: int | None, device: torch.device) -> Tensor:
        """`[T, T]` bool: what each token sees, within `window` positions where a layer has a sliding window."""
        key = (window, device)
        if key not in self._dense:
            visible = _visible(self.end, 0, len(self.end))
            if window is not None:
                visible &= self.depth[:, None] - self.depth[None, :] < window
            self._dense[key] = torch.from_numpy(visible).to(device)
        return self._dense[key]

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """The same as blocks, for FlexAttention."""
        key = (window, device)
        if key not in self._blocks:
            self._blocks[key] = block_mask(self.end, self.depth, window, device)
        return self._blocks[key]


def plan_attention(forest: Forest) -> AttentionPlan:
    """Divide the forest's visible pairs into rectangles, each pair in exactly one."""
    return AttentionPlan(rectangles=_rectangles(forest.parent, forest.end), end=forest.end, depth=forest.depth)


def _visible(end: np.ndarray, start: int, stop: int) -> np.ndarray:
    index = np.arange(start, stop)
    return (index[None, :] <= index[:, None]) & (index[:, None] < end[None, start:stop])


def _rectangles(parent: np.ndarray, end: np.ndarray) -> list[Rectangle]:
    continues = np.zeros(len(end), bool)
    continues[1:] = (parent[1:] == np.arange(len(end) - 1)) & (end[1:] == end[:-1])
    run_starts = np.flatnonzero(~continues)
    run_stops = np.append(run_starts[1:], len(end))
    rectangles: list[Rectangle] = []
    covered = 0
    for start, stop in zip(run_starts.tolist(), run_stops.tolist(), strict=True):
        if start < covered:
            continue
        below = int(end[start])
        if below - start <= _SMALL_SUBTREE and below > stop:
            rectangles.append(Rectangle(start, below, start, below, False, _float_mask(end, start, below)))
            covered = below
            continue
        rectangles.append(Rectangle(start, stop, start, stop, True))
        if below > stop:
            rectangles.append(Rectangle(stop, below, start, stop, False))
    return rectangles


def _float_mask(end: np.ndarray, start: int, stop: int) -> Tensor:
    hidden = ~_visible(end, start, stop)
    # The kernel reads the mask row by row, whatever its strides say.
    return torch.from_numpy(np.ascontiguousarray(np.where(hidden, np.float32(-np.inf), np.float32(0))))


class _ForestAttention(torch.autograd.Function):
    """Exact attention over the rectangles of a plan. q `[1, Hq, T, D]`, k and v `[1, Hkv, T, D]`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        output = torch.zeros(query.shape, dtype=torch.float32)
        lse = torch.full(query.shape[:3], -torch.inf, dtype=torch.float32)
        for area in plan.rectangles:
            rows, columns = slice(area.query_start, area.query_stop), slice(area.key_start, area.key_stop)
            part, part_lse = _flash(
                query[:, :, rows],
                key[:, :, columns],
                value[:, :, columns],
                0.0,
                area.is_causal,
                attn_mask=_cast(area.mask, query),
                scale=scale,
            )
            total = torch.logaddexp(lse[:, :, rows], part_lse)
            old = (lse[:, :, rows] - total).exp().unsqueeze(-1)
            new = (part_lse - total).exp().unsqueeze(-1)
            output[:, :, rows] = output[:, :, rows] * old + part * new
            lse[:, :, rows] = total
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.plan, ctx.scale = plan, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        grad_query = torch.zeros(query.shape, dtype=torch.float32)
        grad_key = torch.zeros(key.shape, dtype=torch.float32)
        grad_value = torch.zeros(value.shape, dtype=torch.float32)
        for area in ctx.plan.rectangles:
            rows, columns = slice(area.query_start, area.query_stop), slice(area.key_start, area.key_stop)
            part_query, part_key, part_value = _flash_backward(
                gradient[:, :, rows],
                query[:, :, rows],
                key[:, :, columns],
                value[:, :, columns],
                output[:, :, rows],
                lse[:, :, rows].transpose(1, 2).contiguous().transpose(1, 2),
                0.0,
                area.is_causal,
                attn_mask=_cast(area.mask, query),
                scale=ctx.scale,
            )
            grad_query[:, :, rows] += part_query
            grad_key[:, :, columns] += part_key
            grad_value[:, :, columns] += part_value
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _cast(mask: Tensor | None, like: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(like.dtype)


def _repeat_heads(tensor: Tensor, num_heads: int) -> Tensor:
    return tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1)


def forest_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    forest_plan: AttentionPlan | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention implementation for transformers: q `[1, Hq, T, D]`, k, v `[1, Hkv, T, D]` -> `[1, T, Hq, D]`.

    Raises `PolicyError` when the model does not hand the plan through, or asks for a mask or dropout of its own.
    """
    if forest_plan is None:
        raise PolicyError(
            f"{type(module).__name__} called attention without a forest plan",
            expected="a decoder that passes keyword arguments on to its attention",
        )
    if dropout or attention_mask is not None:
        raise PolicyError("attention dropout and masks of the model's own cannot be used with a forest")
    if s_aux is not None:
        raise PolicyError("models with attention sinks are not supported")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotary embeddings leave float32
    if sliding_window is None and query.device.type == "cpu":
        output = _ForestAttention.apply(query, key, value, forest_plan, scale)
    elif is_usable(query):
        mask = forest_plan.block_mask(sliding_window, query.device)
        output = flex_forest_attention(query, key, value, mask, scale)
    else:
        mask = forest_plan.dense_mask(sliding_window, query.device)
        key, value = _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1])
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, forest_attention)

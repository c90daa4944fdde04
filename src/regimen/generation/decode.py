"""Key and value memory of the in-process engine, and the attention that reads it.

A row's keys are those of the shared prefix (held once, for all rows that begin with it) followed by its own. The
attention is registered with transformers; the model itself is called without a cache of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regimen.errors import GenerationError

DECODE_ATTENTION_NAME = "regimen_decode"


@dataclass(slots=True)
class KeyValueMemory:
    """Buffers per layer: own keys and values `[R, Hkv, C, D]`, prefix `[1, Hkv, P, D]` (None without one)."""

    own: list[tuple[Tensor, Tensor]]
    prefix: list[tuple[Tensor, Tensor]] | None = None

    @classmethod
    def allocate(
        cls, config: Any, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> KeyValueMemory:
        """Empty buffers for a decoder of `config`."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (rows, heads, capacity, width)
        layers = range(config.num_hidden_layers)

        def empty() -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls([(empty(), empty()) for _ in layers])

    @property
    def capacity(self) -> int:
        """Own tokens a row can hold."""
        return self.own[0][0].shape[2]

    def copy_row(self, source: int, destination: int, length: int) -> None:
        """Copy the first `length` own tokens of one row to another."""
        for keys, values in self.own:
            keys[destination, :, :length] = keys[source, :, :length]
            values[destination, :, :length] = values[source, :, :length]

    def take(self, row: int, length: int) -> Tensor:
        """A copy of a row's own tokens: `[layers, 2, Hkv, length, D]`."""
        return torch.stack([torch.stack((k[row, :, :length], v[row, :, :length])) for k, v in self.own])

    def put(self, row: int, stored: Tensor) -> None:
        """Write what `take` returned into a row."""
        length = stored.shape[3]
        for (keys, values), (stored_keys, stored_values) in zip(self.own, stored, strict=True):
            keys[row, :, :length] = stored_keys
            values[row, :, :length] = stored_values


@dataclass(frozen=True, slots=True)
class DecodeView:
    """One forward pass over the memory: T new tokens of n rows, one row's after the other's, at most L of each.

    The model sees them as one sequence, so that nothing is padded but the queries inside attention. `row` `[T]` counts
    from `first_row`; `column` `[T]` counts within the row's new tokens; `position` `[T]` is where a token's keys go in
    the row's own memory; `length` the longest own length after the pass; `mask` `[n, 1, L, length]` what each new
    token sees of it (0 or -inf); `uses_prefix` `[n, 1, 1]` bool.
    """

    memory: KeyValueMemory
    first_row: int
    row: Tensor
    column: Tensor
    position: Tensor
    length: int
    mask: Tensor
    uses_prefix: Tensor | None

    def padded(self, flat: Tensor) -> Tensor:
        """`[1, H, T, D]` to `[n, H, L, D]`."""
        rows, _, width, _ = self.mask.shape
        tokens = flat[0].transpose(0, 1)
        if width == 1:
            return tokens.unsqueeze(2)
        result = flat.new_zeros(rows, flat.shape[1], width, flat.shape[3])
        result[self.row, :, self.column] = tokens
        return result

    def flattened(self, padded: Tensor) -> Tensor:
        """`[n, H, L, D]` to `[1, T, H, D]`."""
        return padded[self.row, :, self.column].unsqueeze(0)


def decode_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    decode_view: DecodeView | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention implementation for transformers: q `[1, Hq, T, D]` over prefix and own memory -> `[1, T, Hq, D]`."""
    if decode_view is None or attention_mask is not None or dropout:
        raise GenerationError(f"{type(module).__name__} does not hand keyword arguments on to its attention")
    if sliding_window is not None:
        raise GenerationError(
            "models with a sliding window are not supported by the in-process engine", fix="use another backend"
        )
    if s_aux is not None:
        raise GenerationError("models with attention sinks are not supported by the in-process engine")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    view, layer = decode_view, int(module.layer_idx)  # type: ignore[arg-type]
    keys, values = view.memory.own[layer]
    memory_row = view.row + view.first_row
    keys[memory_row, :, view.position] = key[0].transpose(0, 1)
    values[memory_row, :, view.position] = value[0].transpose(0, 1)
    rows = slice(view.first_row, view.first_row + len(view.mask))
    padded = view.padded(query)
    output, lse = _attend(padded, keys[rows, :, : view.length], values[rows, :, : view.length], view.mask, scale)
    if view.memory.prefix is not None and view.uses_prefix is not None:
        output = _with_prefix(padded, output, lse, view, layer, scale)
    return view.flattened(output).to(query.dtype), None


def _with_prefix(query: Tensor, output: Tensor, lse: Tensor, view: DecodeView, layer: int, scale: float) -> Tensor:
    assert view.memory.prefix is not None
    assert view.uses_prefix is not None
    rows, heads, length, width = query.shape
    keys, values = view.memory.prefix[layer]
    stacked = query.transpose(0, 1).reshape(1, heads, rows * length, width)
    part, part_lse = _attend(stacked, keys, values, None, scale)
    part = part.reshape(heads, rows, length, width).transpose(0, 1)
    part_lse = part_lse.reshape(heads, rows, length).transpose(0, 1)
    part_lse = part_lse.masked_fill(~view.uses_prefix, -torch.inf)
    total = torch.logaddexp(lse, part_lse)
    own_share, prefix_share = (lse - total).exp().unsqueeze(-1), (part_lse - total).exp().unsqueeze(-1)
    return output * own_share + part * prefix_share


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp: `[n, Hq, L, D]`, `[n, Hq, L]` float32."""
    if query.device.type == "cpu":
        mask = None if mask is None else mask.to(query.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    shaped = query.reshape(rows, groups, heads // groups * length, width)
    scores = (shaped @ key.transpose(-1, -2)).float().mul_(scale).reshape(rows, heads, length, -1)
    if mask is not None:
        scores += mask
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp().to(value.dtype)
    mixed = weights.reshape(rows, groups, heads // groups * length, -1) @ value
    return mixed.reshape(rows, heads, length, width), lse


ALL_ATTENTION_FUNCTIONS.register(DECODE_ATTENTION_NAME, decode_attention)

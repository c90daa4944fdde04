"""An estimate of the memory that training takes, from a model's config.json alone.

In: the dictionary of config.json and what the training configuration says. Out: a `MemoryEstimate` in bytes, or None
where the sizes are not written in the usual names. Kernels, fragments and the allocator's reserve
add to it.

With H hidden, I intermediate, L layers, A attention heads and K key-value heads of size D, V words:

    parameters P   = V H (twice unless tied) + L (H D (2A + 2K) + 3 H I + 2 H) + H     (I: of all experts, + router)
    weights        = 4 P (float32 masters), and 2 P more in bfloat16 (the copies that compute)
    gradients      = 4 P,    optimiser = 8 P (AdamW's two moments)
    with adapters  : these of the adapters' parameters alone, R (in + out) for each layer with rank R; weights = those
                     in float32 and P in the precision (half a byte in 4 bits); no reference, no gradient of the head
    reference      = 4 P where the loss reads one at each step,    generation = 2 P or 4 P where episodes are played
    activations    = T tokens of a micro-batch x L layers x (6 H + 2 D (A + 2K) + D A + 4 I) values of 2 or 4 bytes;
                     with checkpointing L x H values, and one layer as above
    vocabulary     = logits of T tokens in float32 three times, each at most 256 MiB, and the head's gradient, 4 V H
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from regimen.adapters import is_meant

CHUNK_BYTES = 256 * 2**20
WIDTHS = {"bfloat16": 2, "float32": 4}
Config = Mapping[str, Any]


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by what they are for."""

    parameters: int
    weights: int
    gradients: int
    optimiser: int
    reference: int
    generation: int
    activations: int
    vocabulary: int

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.weights, self.gradients, self.optimiser, self.reference, self.generation)
        return sum(parts) + self.activations + self.vocabulary


class LoraShape(msgspec.Struct, frozen=True):
    """Which adapters train. Without `targets`: beside each linear layer that is not excluded."""

    dim: int
    targets: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    in_4bit: bool = False


class _Shape(msgspec.Struct, frozen=True):
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    words: int
    is_tied: bool
    experts: int
    used_experts: int


def estimate_memory(
    model: Config,
    *,
    tokens: int,
    precision: str,
    checkpointing: bool = False,
    has_reference: bool = False,
    generation_precision: str | None = None,
    lora: LoraShape | None = None,
) -> MemoryEstimate | None:
    """The estimate for micro-batches of `tokens`; see the module for the formula."""
    shape = _shape(model)
    if shape is None:
        return None
    count, width = _num_parameters(shape), WIDTHS[precision]
    attention = shape.head * (2 * (shape.heads + 2 * shape.kv_heads) + shape.heads)
    layer = 6 * shape.hidden + attention + 4 * shape.intermediate * shape.used_experts
    values = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    head = 4 * shape.words * shape.hidden
    trained, weights = count, count * (4 + (2 if precision == "bfloat16" else 0))
    if lora is not None:
        trained = _num_adapter_parameters(shape, lora)
        weights = 4 * trained + (count // 2 if lora.in_4bit else width * count)
    return MemoryEstimate(
        parameters=count,
        weights=weights,
        gradients=4 * trained,
        optimiser=8 * trained,
        reference=4 * count if has_reference and lora is None else 0,
        generation=WIDTHS[generation_precision] * count if generation_precision else 0,
        activations=tokens * values * width,
        vocabulary=3 * min(CHUNK_BYTES, 4 * tokens * shape.words) + (head if lora is None else 0),
    )


def _num_parameters(shape: _Shape) -> int:
    hidden = shape.hidden
    attention = hidden * shape.head * (2 * shape.heads + 2 * shape.kv_heads)
    router = hidden * shape.experts if shape.experts > 1 else 0
    layer = attention + 3 * hidden * shape.intermediate * shape.experts + router + 2 * hidden
    return shape.words * hidden * (1 if shape.is_tied else 2) + shape.layers * layer + hidden


def _num_adapter_parameters(shape: _Shape, lora: LoraShape) -> int:
    """Rank times inputs and outputs; experts, which models keep in one parameter, have none."""
    hidden, query, key = shape.hidden, shape.heads * shape.head, shape.kv_heads * shape.head
    sums = {"q_proj": hidden + query, "k_proj": hidden + key, "v_proj": hidden + key, "o_proj": query + hidden}
    names = {f"self_attn.{name}": number for name, number in sums.items()}
    if shape.experts == 1:
        products = ("gate_proj", "up_proj", "down_proj")
        names |= {f"mlp.{name}": hidden + shape.intermediate for name in products}
    total = 0
    for layer in range(shape.layers):
        for name, number in names.items():
            full = f"model.layers.{layer}.{name}"
            chosen = not lora.targets or is_meant(full, lora.targets)
            total += number if chosen and not is_meant(full, lora.excluded) else 0
    return lora.dim * total


def _shape(model: Config) -> _Shape | None:
    nested = model.get("text_config")
    text = cast("Config", nested) if isinstance(nested, dict) else model
    needed = [text.get(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")]
    experts = _whole(text, "num_experts", "num_local_experts", "n_routed_experts") or 1
    intermediate = _whole(text, *(("moe_intermediate_size",) if experts > 1 else ()), "intermediate_size")
    if intermediate is None or not all(type(value) is int and value > 0 for value in needed):
        return None
    hidden, layers, heads, words = cast("list[int]", needed)
    return _Shape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=_whole(text, "num_key_value_heads") or heads,
        head=_whole(text, "head_dim") or hidden // heads,
        words=words,
        is_tied=bool(text.get("tie_word_embeddings", model.get("tie_word_embeddings", False))),
        experts=experts,
        used_experts=(_whole(text, "num_experts_per_tok") or 1) if experts > 1 else 1,
    )


def _whole(model: Config, *names: str) -> int | None:
    """The first of these keys that holds a whole number above 0."""
    for name in names:
        value = model.get(name)
        if type(value) is int and value > 0:
            return value
    return None

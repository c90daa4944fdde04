"""The sizes of a decoder, from its config.json alone: parameters, and what each token leaves in memory.

In: the dictionary of config.json. Out: a `Shape`, or None where the sizes are not written in the usual names.

With H hidden, I intermediate, L layers, A attention heads and K key-value heads of size D, V words:

    a layer's parameters      H D (2A + 2K) + 3 H I + 2 H      (I: of all experts, and their router)
    the outer parameters      V H, twice unless tied, + H
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from regimen.adapters import is_meant

Config = Mapping[str, Any]
# Model types whose attention has a norm over each head of queries and keys.
_WITH_HEAD_NORMS = ("qwen3", "gemma3")


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a decoder; `used_experts` work on each token."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    words: int
    is_tied: bool
    experts: int = 1
    used_experts: int = 1
    has_head_norms: bool = False

    @property
    def products(self) -> int:
        """Parameters of a layer's matrices: what tensor parallel divides."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate * self.experts

    @property
    def rest(self) -> int:
        """Other parameters of a layer: norms, and the router of its experts."""
        router = self.hidden * self.experts if self.experts > 1 else 0
        return 2 * self.hidden + router + (2 * self.head if self.has_head_norms else 0)

    @property
    def outer(self) -> int:
        """Parameters outside the layers: embeddings, vocabulary head, last norm."""
        return self.words * self.hidden * (1 if self.is_tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.outer + self.layers * (self.products + self.rest)


class LoraShape(msgspec.Struct, frozen=True):
    """Which adapters train. Without `targets`: beside each linear layer that is not excluded."""

    dim: int
    targets: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    in_4bit: bool = False

    def parameters(self, shape: Shape) -> int:
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
                chosen = not self.targets or is_meant(full, self.targets)
                total += number if chosen and not is_meant(full, self.excluded) else 0
        return self.dim * total


def shape_of(model: Config) -> Shape | None:
    """The sizes that a config.json states; of a model with several parts, those of its text part."""
    nested = model.get("text_config")
    text = cast("Config", nested) if isinstance(nested, dict) else model
    needed = [text.get(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")]
    experts = _whole(text, "num_experts", "num_local_experts", "n_routed_experts") or 1
    intermediate = _whole(text, *(("moe_intermediate_size",) if experts > 1 else ()), "intermediate_size")
    if intermediate is None or not all(type(value) is int and value > 0 for value in needed):
        return None
    hidden, layers, heads, words = cast("list[int]", needed)
    return Shape(
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
        has_head_norms=str(text.get("model_type", "")).startswith(_WITH_HEAD_NORMS),
    )


def _whole(model: Config, *names: str) -> int | None:
    """The first of these keys that holds a whole number above 0."""
    for name in names:
        value = model.get(name)
        if type(value) is int and value > 0:
            return value
    return None

"""Useful floating-point operations of a training step, and what the machine reaches at best.

Useful: a multiplication and an addition for each weight and token forward, twice that backward; the head for the tokens
that are predicted; attention for the pairs that see each other. What is computed twice to save memory counts once.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from regimen.tokens.forest import Forest


def training_flops(config: Any, forest: Forest) -> float:
    """Forward and backward of one forest through a Llama-shaped decoder."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
    hidden = config.hidden_size
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * config.intermediate_size
    targets = len(np.unique(forest.target))
    seen = int((forest.depth + 1).sum())
    weights = 6 * (config.num_hidden_layers * layer * forest.num_tokens + config.vocab_size * hidden * targets)
    return float(weights + 12 * config.num_hidden_layers * queries * seen)


def num_parameters(model: str) -> int:
    """Weights of the model in a folder; tied ones once. Nothing is loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).parameters())


def matmul_ceiling(
    rows: int, inner: int, columns: int, *, dtype: str = "float32", device: str = "cpu", seconds: float = 1.0
) -> float:
    """The best rate of `[rows, inner] @ [inner, columns]` in repeated trials, operations per second."""
    kind = getattr(torch, dtype)
    left = torch.randn(rows, inner, device=device).to(kind)
    right = torch.randn(inner, columns, device=device).to(kind)
    out = left @ right
    best, spent = float("inf"), 0.0
    while spent < seconds or best == float("inf"):
        began = _now(device)
        torch.mm(left, right, out=out)
        elapsed = _now(device) - began
        best, spent = min(best, elapsed), spent + elapsed
    return 2.0 * rows * inner * columns / best


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

"""Log-probabilities by Apple's cut-cross-entropy, a GPU kernel that holds no logits at all.

In: hidden states, the vocabulary head, targets, as `regimen.policy.logprobs.chunked_logprobs` takes them. Out: the same
log-probabilities, or None where the kernel is of no use, and the caller computes in chunks; on a GPU a line says why,
once for each reason.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16)
_LEAST_VOCABULARY = 4096  # of fewer words the logits are small


def fused_logprobs(
    hidden: Tensor, head: Tensor, bias: Tensor | None, target: Tensor, temperature: float
) -> Tensor | None:
    """`log_softmax(hidden @ head.T / temperature)` at `target`, `[N]` float32, or None. No gradient is left out."""
    if hidden.device.type != "cuda":
        return None
    reason = why_not(hidden, head, bias, temperature)
    if reason is not None:
        _say(reason)
        return None
    kernel = _kernel()
    assert kernel is not None
    # By default the kernel leaves out gradients below the precision of bfloat16; small advantages would vanish.
    loss = kernel(hidden / temperature, head, target, reduction="none", filter_eps=None)
    return -loss.float()


def why_not(hidden: Tensor, head: Tensor, bias: Tensor | None, temperature: float) -> str | None:
    """What keeps the kernel from computing this, or None."""
    if hidden.dtype not in _DTYPES:
        return f"cut-cross-entropy is for bfloat16, and this is {str(hidden.dtype).removeprefix('torch.')}"
    if bias is not None:
        return "cut-cross-entropy takes no bias of the vocabulary head"
    if head.shape[0] < _LEAST_VOCABULARY:
        return f"a vocabulary of {head.shape[0]} is small"
    if type(head) not in (Tensor, torch.nn.Parameter):
        return f"cut-cross-entropy takes no {type(head).__name__}"
    if math.frexp(temperature)[0] != 0.5:
        return f"hidden states divided by a temperature of {temperature:g} would be rounded"
    if torch.are_deterministic_algorithms_enabled():
        return "cut-cross-entropy adds gradients in no fixed order, and run.deterministic is set"
    if _kernel() is None:
        return "cut-cross-entropy is not installed (pip install 'regimen-rl[gpu]')"
    return None


@functools.cache
def _kernel() -> Any:
    """The package's function, or None where it or Triton is missing."""
    try:
        return importlib.import_module("cut_cross_entropy").linear_cross_entropy
    except ImportError:
        return None


@functools.cache
def _say(reason: str) -> None:
    print(f"note: log-probabilities are computed in chunks of logits: {reason}", file=sys.stderr, flush=True)

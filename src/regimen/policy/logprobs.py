"""Log-probabilities of chosen tokens, and entropies, from hidden states, without ever holding the whole logits.

In: hidden states `[N, H]`, the vocabulary head `[V, H]`, targets `[N]`. Out: log-probabilities `[N]`, float32, and
where they are asked for the entropies `[N]` of the distributions that the targets were chosen from, in nats.
Logits exist for one chunk of rows at a time, in the backward pass too, where they are computed again; or not at all,
where `regimen.policy.fused` has a kernel.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from regimen.policy.fused import fused_logprobs

CHUNK_BYTES = 256 * 2**20  # float32 logits held at a time


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        target: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logprob = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        lse = torch.empty_like(logprob)
        entropy = torch.empty_like(logprob) if with_entropy else None
        for rows in _chunks(len(target), head.shape[0]):
            logits = _logits(hidden[rows], head, bias, temperature)
            lse[rows] = torch.logsumexp(logits, dim=-1)
            logprob[rows] = logits.gather(1, target[rows, None]).squeeze(1) - lse[rows]
            if entropy is not None:  # H = -sum p log p
                logits -= lse[rows, None]
                entropy[rows] = -logits.exp().mul_(logits).sum(-1)
        ctx.save_for_backward(hidden, head, bias, target, lse, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, head, bias, target, lse, entropy = ctx.saved_tensors
        gradient, entropy_gradient = (None if given is None else given / ctx.temperature for given in gradients)
        gradient = torch.zeros_like(lse) if gradient is None else gradient
        grad_hidden = torch.empty_like(hidden)
        _, trains_head, trains_bias, *_ = ctx.needs_input_grad  # neither where adapters train beside frozen weights
        grad_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device) if trains_head else None
        grad_bias = torch.zeros(bias.shape, dtype=torch.float32, device=head.device) if trains_bias else None
        for rows in _chunks(len(target), head.shape[0]):
            slope = _logits(hidden[rows], head, bias, ctx.temperature).sub_(lse[rows, None])  # log p
            if entropy_gradient is None:
                slope.exp_().mul_(-gradient[rows, None])
            else:  # dH/dz = -p (log p + H)
                probability = slope.exp()
                slope.add_(entropy[rows, None]).mul_(entropy_gradient[rows, None]).add_(gradient[rows, None])
                slope.mul_(probability).neg_()
            slope.scatter_add_(1, target[rows, None], gradient[rows, None])
            slope_cast = slope.to(head.dtype)
            grad_hidden[rows] = slope_cast @ head
            if grad_head is not None:
                grad_head += slope_cast.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), grad_bias, None, None, None


def _chunks(num_rows: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = (hidden @ head.T).float()
    if bias is not None:
        logits += bias.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def chunked_logprobs(
    hidden: Tensor, head: Tensor, bias: Tensor | None, target: Tensor, temperature: float = 1.0
) -> Tensor:
    """`log_softmax(hidden @ head.T / temperature)` at `target`: `[N]` float32, differentiable.

    hidden `[N, H]` and head `[V, H]` of one dtype (the matrix products run in it, the softmax in float32), target `[N]`
    int64. `temperature` is the sampling temperature, so that the result compares with the sampler's.
    """
    return _applied(hidden, head, bias, target, temperature, False)[0]


def chunked_logprobs_and_entropy(
    hidden: Tensor, head: Tensor, bias: Tensor | None, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same and the entropy of each row's distribution at `temperature`, in nats: `[N]` float32, differentiable."""
    logprob, entropy = _applied(hidden, head, bias, target, temperature, True)
    assert entropy is not None
    return logprob, entropy


def _applied(*arguments: Any) -> tuple[Tensor, Tensor | None]:
    return cast("tuple[Tensor, Tensor | None]", _ChunkedLogprobs.apply(*arguments))


def selected_logprobs(
    hidden: Tensor, head: Tensor, bias: Tensor | None, target: Tensor, temperature: float = 1.0
) -> Tensor:
    """`chunked_logprobs` by the fastest means there is for these tensors."""
    fused = fused_logprobs(hidden, head, bias, target, temperature)
    return chunked_logprobs(hidden, head, bias, target, temperature) if fused is None else fused

"""Chunked log-probabilities against log_softmax over whole logits, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regimen.policy import logprobs
from regimen.policy.logprobs import chunked_logprobs, chunked_logprobs_and_entropy

ROWS, WIDTH, VOCABULARY = 11, 6, 37


def inputs(with_bias: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=random).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=random).to(dtype).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=random).to(dtype).requires_grad_() if with_bias else None
    return hidden, head, bias, torch.randint(VOCABULARY, (ROWS,), generator=random)


def plain(hidden: Tensor, head: Tensor, bias: Tensor | None, target: Tensor, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head, bias).float() / temperature
    return logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1)


@pytest.fixture(params=[1, 3, 100])
def rows_per_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * VOCABULARY * request.param)
    return request.param


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(rows_per_chunk: int, temperature: float, with_bias: bool) -> None:
    tensors = inputs(with_bias)
    upstream = torch.linspace(-1, 2, ROWS)
    found = chunked_logprobs(*tensors, temperature)
    expected = plain(*tensors, temperature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    leaves = [tensor for tensor in tensors[:3] if tensor is not None]
    gradients = torch.autograd.grad(found, leaves, upstream)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("of", ["entropy", "both"])
def test_entropy_and_its_gradients(rows_per_chunk: int, temperature: float, with_bias: bool, of: str) -> None:
    tensors = inputs(with_bias)
    hidden, head, bias, _ = tensors
    upstream = torch.linspace(2, -1, ROWS), torch.linspace(-1, 2, ROWS)
    found = chunked_logprobs_and_entropy(*tensors, temperature)
    logits = torch.nn.functional.linear(hidden, head, bias) / temperature
    expected = plain(*tensors, temperature), torch.distributions.Categorical(logits=logits).entropy()
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    first = 0 if of == "both" else 1
    leaves = [tensor for tensor in tensors[:3] if tensor is not None]
    gradients = torch.autograd.grad(found[first:], leaves, upstream[first:])
    for got, wanted in zip(gradients, torch.autograd.grad(expected[first:], leaves, upstream[first:]), strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_entropy_of_even_odds() -> None:
    """Four words, all as likely: log 4; the gradient of a maximum is 0."""
    hidden = torch.zeros(2, WIDTH, requires_grad=True)
    _, entropy = chunked_logprobs_and_entropy(hidden, torch.ones(4, WIDTH), None, torch.tensor([0, 3]))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(4)))
    entropy.sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, torch.zeros_like(hidden))


def test_the_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * VOCABULARY * 4)
    assert logprobs._chunks(ROWS, VOCABULARY) == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert logprobs._chunks(2, 10**9) == [slice(0, 1), slice(1, 2)]
    assert logprobs._chunks(0, VOCABULARY) == []


def test_half_precision_is_summed_in_float32() -> None:
    hidden, head, _, target = inputs(with_bias=False, dtype=torch.bfloat16)
    found = chunked_logprobs(hidden, head, None, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(hidden, head, None, target, 1.0), atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_no_row() -> None:
    hidden, head, _, target = inputs(with_bias=False)
    found = chunked_logprobs(hidden[:0], head, None, target[:0])
    assert found.shape == (0,)
    found.sum().backward()
    assert head.grad is not None
    assert not head.grad.any()

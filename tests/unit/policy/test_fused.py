"""When the kernel for log-probabilities is taken, and on a GPU its numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regimen.policy import fused
from regimen.policy.fused import fused_logprobs, why_not
from regimen.policy.logprobs import chunked_logprobs, selected_logprobs

VOCABULARY = 5000


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_kernel", lambda: object())


def tensors(dtype: torch.dtype = torch.bfloat16, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=generator)
    head = 0.2 * torch.randn(vocabulary, 64, generator=generator)
    return hidden.to(dtype), head.to(dtype)


@pytest.mark.usefixtures("_installed")
def test_the_kernel_takes_bfloat16_and_temperatures_that_round_nothing() -> None:
    hidden, head = tensors()
    assert [why_not(hidden, head, None, temperature) for temperature in (1.0, 0.5, 2.0)] == [None] * 3


@pytest.mark.usefixtures("_installed")
def test_what_the_kernel_cannot_do_is_named() -> None:
    hidden, head = tensors()
    exact = tensors(torch.float32)
    small = tensors(vocabulary=100)
    assert "float32" in str(why_not(*exact, None, 1.0))
    assert "bias" in str(why_not(hidden, head, head[:, 0], 1.0))
    assert "100 is small" in str(why_not(*small, None, 1.0))
    assert "0.7" in str(why_not(hidden, head, None, 0.7))
    torch.use_deterministic_algorithms(True)
    try:
        assert "deterministic" in str(why_not(hidden, head, None, 1.0))
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_kernel", lambda: None)
    assert "pip install 'regimen-rl[gpu]'" in str(why_not(*tensors(), None, 1.0))


def test_a_reason_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    fused._say.cache_clear()
    fused._say("of a test")
    fused._say("of a test")
    assert capsys.readouterr().err == "note: log-probabilities are computed in chunks of logits: of a test\n"


@pytest.mark.usefixtures("_installed")
def test_on_a_cpu_chunks_are_taken_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    hidden, head = tensors()
    target = torch.arange(300)
    assert fused_logprobs(hidden, head, None, target, 1.0) is None
    found = selected_logprobs(hidden, head, None, target, 1.0)
    expected = (hidden.float() @ head.float().T).log_softmax(-1)[torch.arange(300), target]
    assert torch.allclose(found, expected, atol=0.05)  # the products are rounded to bfloat16
    assert capsys.readouterr().err == ""


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_on_a_gpu_the_kernel_gives_the_numbers_of_chunks(temperature: float) -> None:
    pytest.importorskip("cut_cross_entropy", reason="cut-cross-entropy is not installed: pip install 'regimen-rl[gpu]'")
    hidden, head = (tensor.cuda().requires_grad_() for tensor in tensors())
    target = torch.randint(0, VOCABULARY, (300,), generator=torch.Generator().manual_seed(1)).cuda()
    weight = torch.linspace(-1, 1, 300, device="cuda")  # advantages of both signs, and next to none
    found = fused_logprobs(hidden, head, None, target, temperature)
    assert found is not None
    assert found.dtype == torch.float32
    wide_hidden, wide_head = (tensor.detach().float().requires_grad_() for tensor in (hidden, head))
    expected = chunked_logprobs(wide_hidden, wide_head, None, target, temperature)
    assert torch.allclose(found, expected, atol=1e-2)
    gradients = torch.autograd.grad(found, (hidden, head), weight)
    wanted = torch.autograd.grad(expected, (wide_hidden, wide_head), weight)
    for left, right in zip(gradients, wanted, strict=True):
        assert (left.float() - right).norm() < 0.02 * right.norm()

"""`policy.torch_compile`: the same numbers, compiled once for all sizes, and a clear word where no compiler is."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from regimen.algorithms.losses import sft_loss
from regimen.errors import PolicyError
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.tokens.forest import Forest, TrainingSequence, build_forest


def group(size: int) -> Forest:
    """A prompt and `size` answers of different lengths."""
    random = np.random.default_rng(size)
    prompt = random.integers(2, 258, 10 + size).tolist()
    sequences = [
        TrainingSequence([*prompt, *random.integers(2, 258, 3 + number).tolist()], [(len(prompt), len(prompt) + 3)])
        for number in range(size)
    ]
    return build_forest(sequences)


def options(**changes: bool) -> LocalPolicyOptions:
    return LocalPolicyOptions(precision="float32", optimizer_kwargs={"lr": 1e-3}, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_takes_the_same_steps(tiny: ModuleType, checkpointing: bool) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    plain = LocalPolicy(tiny.tiny_model(), options(activation_checkpointing=checkpointing))
    compiled = LocalPolicy(tiny.tiny_model(), options(activation_checkpointing=checkpointing, torch_compile=True))
    assert [name for name, _ in plain.named_tensors()] == [name for name, _ in compiled.named_tensors()]
    numbers = []
    for size in (2, 3, 5, 4):
        expected, found = (policy.train_step([group(size)], sft_loss) for policy in (plain, compiled))
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        numbers.append(counters["stats"]["unique_graphs"])
    assert numbers[0] > 0
    assert set(numbers) == {numbers[0]}  # nothing is compiled again for other sizes


def test_without_a_compiler_nothing_is_loaded_for_it(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(PolicyError, match=r"policy.torch_compile: torch.compile needs a C\+\+ compiler.*false"):
        LocalPolicy(tiny.tiny_model(), options(torch_compile=True))


def test_layers_are_left_alone_unless_asked(tiny: ModuleType) -> None:
    policy = LocalPolicy(tiny.tiny_model(), options())
    assert all(layer._compiled_call_impl is None for layer in policy.model.model.layers)

"""FlexAttention with the forest's mask: which blocks are seen, and the same numbers as the per-tree attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regimen.policy import attention
from regimen.policy.attention import AttentionPlan, forest_attention, plan_attention
from regimen.policy.flex import BLOCK, blocks, flex_forest_attention, is_usable
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.tokens.forest import Forest, TrainingSequence, build_forest

CPU = torch.device("cpu")
WINDOWS = [None, 70]
SCALE = 0.25


def forest(seed: int = 0, prompt: int = 150, answers: int = 4, trees: int = 2) -> Forest:
    """Trees of a prompt, a turn that two of the answers share, and answers; several blocks of tokens."""
    random = np.random.default_rng(seed)

    def words(size: int) -> list[int]:
        return random.integers(2, 200, size).tolist()

    sequences: list[TrainingSequence] = []
    for _ in range(trees):
        root, turn = words(prompt), words(40)
        for number in range(answers):
            ids = [*root, *(turn if number < 2 else []), *words(20 + 15 * number)]
            sequences.append(TrainingSequence(ids, [(prompt, len(ids))]))
    return build_forest(sequences)


def dense(of: Forest, window: int | None) -> np.ndarray:
    """The definition, pair by pair, by walking to the root."""
    seen = np.zeros((of.num_tokens, of.num_tokens), bool)
    for token in range(of.num_tokens):
        path = of.path(token)
        seen[token, path if window is None else path[-window:]] = True
    return seen


def heads(of: Forest, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Queries of 4 heads, keys and values of 2, and the gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    sizes = (4, 2, 2, 4)
    made = [torch.randn(1, size, of.num_tokens, 16, generator=generator) for size in sizes]
    return tuple(tensor.to(device, dtype) for tensor in made)


def gradients(output: Tensor, gradient: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, gradient)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_mask_function_is_the_definition(window: int | None) -> None:
    made = forest()
    mask = plan_attention(made).block_mask(window, CPU)
    index = torch.arange(made.num_tokens)
    zero = torch.tensor(0)
    found = mask.mask_mod(zero, zero, index[:, None], index[None, :])
    assert np.array_equal(found.numpy(), dense(made, window))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 6), st.integers(1, 3), st.sampled_from(WINDOWS))
def test_blocks_hold_what_is_seen(seed: int, prompt: int, answers: int, trees: int, window: int | None) -> None:
    made = forest(seed, prompt, answers, trees)
    seen = dense(made, window)
    partial, full = blocks(made.end, made.depth, window)
    for row in range(len(partial)):
        for column in range(len(partial)):
            square = seen[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            assert full[row, column] == (square.all() and row != column)
            if window is None:
                assert partial[row, column] == (square.any() and not full[row, column])
            else:
                assert partial[row, column] or full[row, column] or not square.any()


def test_blocks_that_nobody_sees_are_left_out() -> None:
    """Two trees of two blocks each: 3 squares on and below the diagonal of each tree, none between them."""
    made = build_forest([TrainingSequence([number] * 2 * BLOCK, [(1, 2)]) for number in (3, 4)])
    partial, full = blocks(made.end, made.depth, None)
    assert partial.astype(int).tolist() == np.eye(4, dtype=int).tolist()
    assert np.argwhere(full).tolist() == [[1, 0], [3, 2]]


@pytest.mark.parametrize("window", WINDOWS)
def test_flex_attention_equals_attention_per_tree(window: int | None) -> None:
    """Forward; torch has no backward pass of it on a CPU."""
    made = forest()
    plan = plan_attention(made)
    query, key, value, _ = heads(made)
    output = flex_forest_attention(query, key, value, plan.block_mask(window, CPU), SCALE)
    assert torch.allclose(output, _attend((query, key, value), window, plan), atol=1e-5)


def test_a_mask_is_made_once_for_all_layers() -> None:
    plan = plan_attention(forest())
    assert plan.block_mask(None, CPU) is plan.block_mask(None, CPU)
    assert plan.block_mask(None, CPU) is not plan.block_mask(70, CPU)


def test_the_kernel_is_for_a_gpu_and_heads_it_can_multiply() -> None:
    assert not is_usable(torch.zeros(1, 2, 8, 64))


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_the_compiled_kernel_on_a_cpu_equals_attention_per_tree(window: int | None) -> None:
    """The kernel skips blocks, where the uncompiled code asks the mask function of every pair. Forward pass alone."""
    made = forest()
    plan = plan_attention(made)
    query, key, value, _ = heads(made)
    compiled: Any = torch.compile(flex_forest_attention)
    with torch.no_grad():
        output = compiled(query, key, value, plan.block_mask(window, CPU), SCALE)
    assert torch.allclose(output, _attend((query, key, value), window, plan), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_flex_attention_equals_a_dense_mask(
    window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3  # the kernel multiplies float32 in tf32
    for seed in range(3):  # of different sizes, so that the kernel is compiled for any
        made = forest(seed, prompt=100 + 70 * seed)
        plan = plan_attention(made)
        query, key, value, gradient = heads(made, device, dtype)
        inputs = tuple(tensor.requires_grad_() for tensor in (query, key, value))
        assert is_usable(query)
        found = _attend(inputs, window, plan)
        monkeypatch.setattr(attention, "is_usable", lambda _: False)
        wanted = _attend(inputs, window, plan)
        monkeypatch.undo()
        assert torch.allclose(found, wanted, atol=tolerance)
        for left, right in zip(gradients(found, gradient, inputs), gradients(wanted, gradient, inputs), strict=True):
            assert torch.allclose(left, right, atol=5 * tolerance)


def _attend(inputs: tuple[Tensor, ...], window: int | None, plan: AttentionPlan) -> Tensor:
    output, _ = forest_attention(torch.nn.Module(), *inputs, None, SCALE, sliding_window=window, forest_plan=plan)
    return output.transpose(1, 2)


@pytest.mark.gpu
def test_on_a_gpu_log_probabilities_are_those_of_a_cpu(tiny: Any) -> None:
    made = forest()
    model = tiny.tiny_model(hidden_size=64)  # heads of 16
    options = LocalPolicyOptions(precision="float32", train=False)
    (expected,) = LocalPolicy(model, options).logprobs([made])
    (found,) = LocalPolicy(model.to("cuda"), options).logprobs([made])
    assert np.allclose(found, expected, atol=1e-2)

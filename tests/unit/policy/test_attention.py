"""Forest attention: rectangles cover what is visible exactly once, and training equals plain padded training."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regimen.algorithms.losses import PolicyGradientOptions, PreferenceOptions, dpo_loss, policy_gradient_loss, sft_loss
from regimen.errors import PolicyError
from regimen.policy import attention
from regimen.policy.attention import plan_attention
from regimen.policy.base import Loss
from regimen.policy.decoder import supervision
from regimen.policy.layout import unroll
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.tokens.forest import Forest, TrainingSequence, build_forest
from regimen.tokens.packing import micro_batches

TOLERANCE = 1e-4
POLICY_GRADIENT = PolicyGradientOptions(reference_policy_kl_penalty=0.05)
LOSSES: dict[str, Loss] = {
    "sft": sft_loss,
    "dpo": lambda logprob, batch: dpo_loss(logprob, batch, PreferenceOptions(sft_loss_weight=0.1)),
    "grpo": lambda logprob, batch: policy_gradient_loss(logprob, batch, POLICY_GRADIENT),
    "gspo": lambda logprob, batch: policy_gradient_loss(
        logprob,
        batch,
        PolicyGradientOptions(
            reference_policy_kl_penalty=0.0, sequence_level_importance_ratios=True, token_level_loss=False
        ),
    ),
}


def branching(prompt: int = 12, scale: int = 1) -> list[TrainingSequence]:
    """Three levels of branching, identical siblings, sequences that end inside a path, two trees; four pairs."""
    random = np.random.default_rng(3)

    def words(size: int) -> list[int]:
        return random.integers(2, 258, size * scale).tolist()

    root, other, turn, deep = words(prompt), words(prompt // 2), words(5), words(4)
    a, b, c, d = words(6), words(3), words(7), words(2)
    paths = [
        [*root, *turn, *deep, *a],
        [*root, *turn, *deep, *b],
        [*root, *turn, *c],
        [*root, *turn, *deep, *a],  # identical to the first
        [*root, *d],
        [*root, *turn, *deep],  # ends inside the first
        [*other, *a],
        [*other, *b],
    ]
    starts = [len(root), len(root) + len(turn), len(root) + len(turn), len(root) + 2, *[len(root)] * 2, len(other), 1]
    return [_sequence(ids, start, row, random) for row, (ids, start) in enumerate(zip(paths, starts, strict=True))]


def _sequence(ids: list[int], start: int, row: int, random: np.random.Generator) -> TrainingSequence:
    spans = [(start, len(ids))] if row != 6 else [(start, start + 2), (start + 3, len(ids))]
    size = sum(stop - begin for begin, stop in spans)

    def values(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, size).astype(np.float32)

    return TrainingSequence(
        ids,
        spans,
        episode=row,
        pair=row // 2,
        is_chosen=row % 2 == 0,
        advantage=np.full(size, random.normal(), np.float32),
        sampled_logprob=values(-7, -5),
        previous_logprob=values(-7, -5),
        reference_logprob=values(-7, -5),
    )


def plain_logprobs(model: Any, sequences: list[TrainingSequence]) -> Tensor:
    """Right-padded rows through transformers' own eager attention: `[E]` in the order of `sequences`."""
    model.set_attn_implementation("eager")
    width = max(len(s.ids) for s in sequences)
    ids, mask = torch.zeros(len(sequences), width, dtype=torch.int64), torch.zeros(len(sequences), width)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
    logprobs = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    rows = np.repeat(np.arange(len(sequences)), [s.num_trained for s in sequences])
    targets = np.concatenate([s.trained_positions() for s in sequences])
    return logprobs[rows, targets - 1, ids[rows, targets]]


def gradients(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def difference(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


def plain_training(model: Any, sequences: list[TrainingSequence], loss: Loss) -> tuple[float, Tensor]:
    model.zero_grad()
    forest = build_forest(sequences)  # only its supervision is used: entries stand in the order of `sequences`
    output = loss(plain_logprobs(model, sequences), supervision(forest, torch.device("cpu")))
    output.loss.backward()
    return float(output.loss.detach()), gradients(model)


def forest_training(model: Any, forests: list[Forest], loss: Loss) -> tuple[float, Tensor]:
    model.zero_grad()
    policy = LocalPolicy(model, LocalPolicyOptions(precision="float32"))
    total, _ = policy._accumulate(forests, loss, backward=True)
    return total, gradients(model)


def forest_logprobs(model: Any, forest: Forest) -> Tensor:
    policy = LocalPolicy(model, LocalPolicyOptions(precision="float32", train=False))
    return torch.from_numpy(policy.logprobs([forest])[0])


@pytest.fixture
def model(tiny: ModuleType) -> Any:
    return tiny.tiny_model()


@pytest.fixture(params=[0, 20, 192], ids=lambda size: f"small={size}")
def small_subtree(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """No masked rectangle at all, some, or the whole forest in one."""
    monkeypatch.setattr(attention, "_SMALL_SUBTREE", request.param)
    return request.param


def coverage(forest: Forest) -> np.ndarray:
    """How many rectangles let each token see each other one."""
    counts = np.zeros((forest.num_tokens, forest.num_tokens), int)
    for area in plan_attention(forest).rectangles:
        shape = (area.query_stop - area.query_start, area.key_stop - area.key_start)
        seen = np.ones(shape, bool)
        if area.is_causal:
            seen = np.tri(*shape, dtype=bool)
        elif area.mask is not None:
            seen = area.mask.numpy() == 0
        counts[area.query_start : area.query_stop, area.key_start : area.key_stop] += seen
    return counts


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8), st.sampled_from([0, 6, 192])
)
@settings(deadline=None)
def test_rectangles_cover_what_is_visible_exactly_once(arrays: list[list[int]], small: int) -> None:
    forest = build_forest([TrainingSequence(a, []) for a in arrays])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_SMALL_SUBTREE", small)
        np.testing.assert_array_equal(coverage(forest), forest.visible().astype(int))


def test_dense_mask_is_what_is_visible_within_the_window() -> None:
    forest = build_forest(branching(prompt=4))
    plan, cpu = plan_attention(forest), torch.device("cpu")
    np.testing.assert_array_equal(plan.dense_mask(None, cpu).numpy(), forest.visible())
    windowed = plan.dense_mask(3, cpu).numpy()
    for token in range(forest.num_tokens):
        assert np.flatnonzero(windowed[token]).tolist() == forest.path(token)[-3:].tolist()  # the path, not the layout


@pytest.mark.usefixtures("small_subtree")
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_plain_padded_training(model: Any, name: str) -> None:
    sequences = branching()
    expected, expected_gradient = plain_training(model, sequences, LOSSES[name])
    forest = build_forest(sequences)
    assert forest.num_tokens < 0.6 * sum(len(s.ids) for s in sequences)  # there is something to share
    loss, gradient = forest_training(model, [forest], LOSSES[name])
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert difference(gradient, expected_gradient) < TOLERANCE


@pytest.mark.parametrize("small", [0, 192])
def test_long_branches_use_exact_rectangles(model: Any, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """Longer than a small subtree, so that both kinds of rectangle occur in one forest."""
    monkeypatch.setattr(attention, "_SMALL_SUBTREE", small)
    sequences = branching(scale=25)
    forest = build_forest(sequences)
    kinds = {(area.is_causal, area.mask is not None) for area in plan_attention(forest).rectangles}
    assert {(True, False), (False, False)} <= kinds
    assert torch.allclose(forest_logprobs(model, forest), plain_logprobs(model, sequences), atol=1e-4)


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 1}, {"num_key_value_heads": 4}, {"head_dim": 24}])
def test_head_layouts(tiny: ModuleType, changes: dict[str, int]) -> None:
    model, sequences = tiny.tiny_model(**changes), branching()
    expected, expected_gradient = plain_training(model, sequences, LOSSES["sft"])
    loss, gradient = forest_training(model, [build_forest(sequences)], LOSSES["sft"])
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert difference(gradient, expected_gradient) < TOLERANCE


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("qwen3", {"head_dim": 8}),
        ("phi3", {"pad_token_id": 0}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("mistral", {"sliding_window": 5}),
        ("gemma3", {"sliding_window": 5, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_other_models_equal_plain_training(tiny: ModuleType, kind: str, changes: dict[str, Any], name: str) -> None:
    model, sequences = tiny.tiny_model(kind, **changes), branching()
    expected, expected_gradient = plain_training(model, sequences, LOSSES[name])
    loss, gradient = forest_training(model, [build_forest(sequences)], LOSSES[name])
    assert LocalPolicy(model, LocalPolicyOptions()).unrolled is None
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert difference(gradient, expected_gradient) < TOLERANCE


def test_the_sliding_window_is_not_ignored(tiny: ModuleType) -> None:
    wide, narrow = (tiny.tiny_model("mistral", sliding_window=window) for window in (1000, 5))
    forest = build_forest(branching())
    assert difference(forest_logprobs(wide, forest), forest_logprobs(narrow, forest)) > 0.01


def broken_forests() -> dict[str, Forest]:
    forest = build_forest(branching())
    end = forest.end.copy()
    end[: len(end) // 2] = np.minimum(end[: len(end) // 2] + 3, forest.num_tokens)
    siblings = np.full_like(forest.end, forest.num_tokens)  # plain causal attention over the layout
    return {
        "later siblings see a few tokens more": replace(forest, end=end),
        "siblings see each other": replace(forest, end=siblings),
        "positions of the layout": replace(forest, depth=np.arange(forest.num_tokens)),
    }


@pytest.mark.parametrize("name", broken_forests())
def test_a_broken_forest_is_far_from_plain_training(model: Any, name: str) -> None:
    sequences = branching()
    expected, expected_gradient = plain_training(model, sequences, LOSSES["sft"])
    loss, gradient = forest_training(model, [broken_forests()[name]], LOSSES["sft"])
    assert abs(loss - expected) > 10 * TOLERANCE * abs(expected)
    assert difference(gradient, expected_gradient) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_do_not_change_loss_or_gradient(model: Any, name: str) -> None:
    sequences = branching()
    whole = micro_batches(sequences, 10_000)
    assert len(whole) == 1
    expected, expected_gradient = forest_training(model, whole, LOSSES[name])
    seen = set[int]()
    for budget in (50, 30, 1):
        forests = micro_batches(sequences, budget)
        assert len(forests) > 1
        seen.add(len(forests))
        loss, gradient = forest_training(model, forests, LOSSES[name])
        assert loss == pytest.approx(expected, rel=1e-5)
        assert difference(gradient, expected_gradient) < 1e-5
    assert seen == {2, 4}


@pytest.mark.parametrize("name", LOSSES)
def test_leaving_masked_sequences_out_changes_nothing(model: Any, name: str) -> None:
    """A pair and its answers are masked as a whole; computed all the same, they get the weight 0."""
    sequences = [replace(s, sample_mask=float(s.pair != 1)) for s in branching()]
    expected, expected_gradient = forest_training(model, [build_forest(sequences)], LOSSES[name])
    forests = micro_batches(sequences, 10_000)
    assert [forest.row.tolist() for forest in forests] == [[row for row in forests[0].row if row not in (2, 3)]]
    assert len(forests[0].row) == 6
    loss, gradient = forest_training(model, forests, LOSSES[name])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert difference(gradient, expected_gradient) < 1e-5


def test_without_sharing_the_numbers_are_the_same(model: Any) -> None:
    sequences = branching()
    shared, alone = (forest_logprobs(model, build_forest(sequences, share=share)) for share in (True, False))
    assert torch.allclose(shared, alone, atol=1e-5)


def test_bfloat16_training_is_near_float32(model: Any) -> None:
    sequences = branching()
    exact, exact_gradient = forest_training(model, [build_forest(sequences)], LOSSES["sft"])
    model.zero_grad()
    policy = LocalPolicy(model, LocalPolicyOptions(precision="bfloat16"))
    total, _ = policy._accumulate([build_forest(sequences)], LOSSES["sft"], backward=True)
    assert total == pytest.approx(exact, rel=0.02)
    assert difference(gradients(model), exact_gradient) < 0.1
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # masters stay float32


def test_attention_without_a_plan_is_refused(model: Any) -> None:
    model.set_attn_implementation(attention.ATTENTION_NAME)
    with pytest.raises(PolicyError, match="without a forest plan"):
        model(input_ids=torch.tensor([[2, 3]]))


def test_capped_attention_scores_are_refused(tiny: ModuleType) -> None:
    """Gemma 2 squashes its scores and logits; leaving that out would silently train another model."""
    with pytest.raises(PolicyError, match="softcap"):
        forest_logprobs(tiny.tiny_model("gemma2", head_dim=8), build_forest(branching()))


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize(
    "kind",
    [
        "mamba2",
        "nemotron_h",
        *[
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("mamba", "jamba", "falcon_h1", "qwen3_next", "lfm2", "zamba2")
        ],
    ],
)
def test_models_that_mix_tokens_elsewhere_get_rows_and_equal_plain_training(
    tiny: ModuleType, kind: str, name: str
) -> None:
    model, sequences = tiny.tiny_model(kind), branching()
    expected, expected_gradient = plain_training(model, sequences, LOSSES[name])
    forests = micro_batches(sequences, 80, padded=True)
    assert len(forests) > 1
    loss, gradient = forest_training(model, forests, LOSSES[name])
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert difference(gradient, expected_gradient) < TOLERANCE
    policy = LocalPolicy(model, LocalPolicyOptions())
    assert policy.unrolled is not None
    assert policy.unrolled.startswith("tokens are mixed outside attention, by ")


@pytest.mark.parametrize("kind", ["nemotron_h", "lfm2"])
def test_a_forest_would_carry_one_sequence_into_another(tiny: ModuleType, kind: str) -> None:
    """Without rows the numbers are others, so the equality above is not for free."""
    model, sequences = tiny.tiny_model(kind), branching()
    expected = plain_logprobs(model, sequences).detach()
    policy = LocalPolicy(model, LocalPolicyOptions(precision="float32", train=False))
    policy.decoder.unrolled = None
    model.set_attn_implementation(attention.ATTENTION_NAME)
    [found] = policy.logprobs([build_forest(sequences)])
    assert difference(torch.from_numpy(found), expected) > 0.01


def test_mixing_that_no_layer_tells_of_is_found_by_the_numbers(tiny: ModuleType) -> None:
    """A layer that adds to each token the mean of those before it: no convolution, no name."""
    model, sequences = tiny.tiny_model(), branching()

    def mean_so_far(_: Any, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        counts = torch.arange(1, output.shape[1] + 1)[None, :, None]
        return output + output.cumsum(1) / counts

    model.model.layers[0].mlp.register_forward_hook(mean_so_far)
    expected, expected_gradient = plain_training(model, sequences, LOSSES["dpo"])
    loss, gradient = forest_training(model, micro_batches(sequences, 100, padded=True), LOSSES["dpo"])
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert difference(gradient, expected_gradient) < TOLERANCE
    assert LocalPolicy(model, LocalPolicyOptions()).unrolled == (
        "with shared prefixes its numbers are not those of its own code"
    )


def test_logits_changed_behind_the_head_are_refused(tiny: ModuleType) -> None:
    model = tiny.tiny_model("falcon_h1", lm_head_multiplier=0.5)
    with pytest.raises(PolicyError, match="a FalconH1ForCausalLM changes its logits behind the vocabulary head"):
        LocalPolicy(model, LocalPolicyOptions())


def test_rows_of_a_forest_with_shared_prefixes() -> None:
    forest = build_forest(
        [
            TrainingSequence([7, 8, 9], [(1, 2)]),  # trained up to its second token
            TrainingSequence([7, 8, 5, 6], [(2, 4)]),
            TrainingSequence([7, 8], []),  # in no row: nothing of it trains
            TrainingSequence([3, 4], [(1, 2)]),
        ]
    )
    rows = unroll(forest, torch.device("cpu"))
    assert rows.tokens.tolist() == [[7, 8, 0, 0], [7, 8, 5, 6], [3, 4, 0, 0]]
    assert rows.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert rows.row.tolist() == [0, 1, 1, 2]
    assert rows.column.tolist() == [0, 1, 2, 0]

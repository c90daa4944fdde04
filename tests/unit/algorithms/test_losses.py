"""Losses against hand-derived numbers and against plain Python loops that share no code with them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regimen.algorithms.losses import (
    PolicyGradientOptions,
    PreferenceOptions,
    dpo_loss,
    policy_gradient_loss,
    sft_loss,
)
from regimen.errors import ConfigError, PolicyError
from regimen.policy.base import Supervision

INF = float("inf")
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One sequence: a value per trained token in each list."""

    lp: list[float]
    prev: list[float] | None = None
    gen: list[float] | None = None
    ref: list[float] | None = None
    advantage: float = 0.0
    mask: float = 1.0
    pair: int = -1
    is_chosen: bool = False

    def column(self, name: str) -> list[float]:
        """A column; one that was not given equals `lp`."""
        values = getattr(self, name)
        return self.lp if values is None else values


def build(
    rows: list[Row], totals: list[Row] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Supervision]:
    """Log-probabilities that need a gradient, and the micro-batch; the normalisers are those of `totals`."""
    totals = rows if totals is None else totals

    def entries(name: str) -> Tensor:
        return torch.tensor([value for row in rows for value in row.column(name)], dtype=dtype)

    lengths = [len(row.lp) for row in rows]
    index = [number for number, length in enumerate(lengths) for _ in range(length)]
    batch = Supervision(
        sequence=torch.tensor(index, dtype=torch.int64),
        weight=torch.tensor([rows[i].mask for i in index], dtype=dtype),
        advantage=torch.tensor([rows[i].advantage for i in index], dtype=dtype),
        sampled_logprob=entries("gen"),
        previous_logprob=entries("prev"),
        reference_logprob=entries("ref"),
        pair=torch.tensor([row.pair for row in rows], dtype=torch.int64),
        is_chosen=torch.tensor([row.is_chosen for row in rows], dtype=torch.bool),
        sample_mask=torch.tensor([row.mask for row in rows], dtype=dtype),
        num_trained=torch.tensor(lengths, dtype=dtype),
        valid_tokens=sum(len(row.lp) * row.mask for row in totals),
        valid_sequences=sum(row.mask for row in totals),
    )
    return entries("lp").requires_grad_(), batch


def run(rows: list[Row], **options: Any) -> tuple[float, list[float], dict[str, float]]:
    """Loss, gradient and figures of the policy gradient on one whole batch, without KL unless asked."""
    logprob, batch = build(rows)
    output = policy_gradient_loss(
        logprob, batch, PolicyGradientOptions(**{"reference_policy_kl_penalty": 0.0, **options})
    )
    output.loss.backward()
    assert logprob.grad is not None
    assert output.loss.dtype == torch.float32
    return output.loss.item(), logprob.grad.tolist(), output.metrics


def random_rows(seed: int, count: int = 8) -> list[Row]:
    """Rows of 1 to 5 tokens, off-policy enough to reach every clip; the third is masked."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        lp = [rng.uniform(-3.0, -0.05) for _ in range(rng.randint(1, 5))]
        prev = [value + rng.gauss(0, 0.4) for value in lp]
        gen = [value + rng.gauss(0, 0.3) for value in prev]
        ref = [value + rng.gauss(0, 0.8) for value in lp]
        mask = 0.0 if number == 2 else 1.0
        rows.append(Row(lp, prev, gen, ref, rng.gauss(0, 1), mask, pair=number // 2, is_chosen=number % 2 == 0))
    return rows


# --- plain Python ------------------------------------------------------------------------------------------------


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def plain_weights(row: Row, options: PolicyGradientOptions) -> list[float]:
    """Importance weights of one row's tokens."""
    if not options.use_importance_sampling_correction:
        return [1.0] * len(row.lp)
    differences = [p - g for p, g in zip(row.column("prev"), row.column("gen"), strict=True)]
    weights = [math.exp(d) for d in differences]
    if options.sequence_level_importance_ratios:
        weights = [math.exp(sum(differences))] * len(differences)
    low = options.truncated_importance_sampling_ratio_min or 0.0
    high = options.truncated_importance_sampling_ratio or INF
    kind = options.truncated_importance_sampling_type
    if kind == "tis":
        weights = [clip(w, low, high) for w in weights]
    if kind == "icepop":
        weights = [w if low <= w <= high else 0.0 for w in weights]
    if kind == "seq-mask-tis" and not low <= math.exp(sum(differences) / len(differences)) <= high:
        weights = [0.0] * len(weights)
    return weights


def plain_actor(row: Row, position: int, options: PolicyGradientOptions) -> float:
    """Actor loss of one token, before its weight."""
    advantage, lp = row.advantage, row.lp[position]
    differences = [a - b for a, b in zip(row.lp, row.column("prev"), strict=True)]
    ratio = math.exp(differences[position])
    if options.sequence_level_importance_ratios:
        ratio = math.exp(sum(differences) / len(differences))
    clipped = clip(ratio, 1 - options.ratio_clip_min, 1 + options.ratio_clip_max)
    if options.disable_ppo_ratio:
        ratio = clipped = lp
    if options.force_on_policy_ratio:
        ratio = clipped = 1.0
    if options.use_cispo:
        return -advantage * clipped * lp
    loss = max(-advantage * ratio, -advantage * clipped)
    if options.ratio_clip_c is not None and advantage < 0:
        loss = min(loss, -advantage * options.ratio_clip_c)
    return loss


def plain_kl(lp: float, gen: float, ref: float, options: PolicyGradientOptions) -> float:
    r = clip(ref - lp, -20, 20)
    kl = {"k1": -r, "k2": r * r / 2, "k3": math.exp(r) - 1 - r}[options.reference_policy_kl_type]
    u = math.exp(lp - gen) if options.use_on_policy_kl_approximation else 1.0
    return clip(u * kl, -10, 10)


def plain_loss(rows: list[Row], options: PolicyGradientOptions) -> float:
    """The whole loss by loops."""
    tokens = sum(len(row.lp) * row.mask for row in rows)
    total = 0.0
    for row in rows:
        if row.mask == 0:
            continue
        weights = plain_weights(row, options)
        values = [
            weights[i] * plain_actor(row, i, options)
            + options.reference_policy_kl_penalty
            * plain_kl(row.lp[i], row.column("gen")[i], row.column("ref")[i], options)
            for i in range(len(row.lp))
        ]
        per_row = len(row.lp) * sum(other.mask for other in rows)
        total += sum(values) / (tokens if options.token_level_loss else per_row)
    return total


SEQUENCE_LEVEL: dict[str, Any] = {"sequence_level_importance_ratios": True, "token_level_loss": False}
CORRECTION: dict[str, Any] = {"use_importance_sampling_correction": True}


def truncation(kind: str, high: float, low: float | None = None) -> dict[str, Any]:
    return {
        **CORRECTION,
        "truncated_importance_sampling_type": kind,
        "truncated_importance_sampling_ratio": high,
        "truncated_importance_sampling_ratio_min": low,
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "sequence means": {"token_level_loss": False},
    "dapo": {"ratio_clip_max": 0.28, "reference_policy_kl_penalty": 0.0},
    "gspo": {**SEQUENCE_LEVEL, "ratio_clip_min": 0.03, "ratio_clip_max": 0.04},
    "gspo corrected": {**SEQUENCE_LEVEL, **CORRECTION},
    "cispo": {"use_cispo": True},
    "reinforce": {"disable_ppo_ratio": True},
    "on policy": {"force_on_policy_ratio": True},
    "dual clip": {"ratio_clip_c": 1.1},
    "corrected": CORRECTION,
    "tis": truncation("tis", 1.2),
    "tis with minimum": truncation("tis", 1.2, 0.9),
    "icepop": truncation("icepop", 1.2, 0.8),
    "seq-mask-tis": truncation("seq-mask-tis", 1.1, 0.9),
    "k1": {"reference_policy_kl_type": "k1", "reference_policy_kl_penalty": 0.3},
    "k2": {"reference_policy_kl_type": "k2", "reference_policy_kl_penalty": 0.3},
    "on policy kl": {"use_on_policy_kl_approximation": True, "reference_policy_kl_penalty": 0.3},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


# --- every variant -----------------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_loss_equals_plain_loops(options: dict[str, Any], seed: int) -> None:
    rows = random_rows(seed)
    logprob, batch = build(rows)
    chosen = PolicyGradientOptions(**options)
    # With the ratio forced to 1 the previous policy is the current one, so the loops are given no other.
    if chosen.force_on_policy_ratio:
        rows = [replace(row, prev=None) for row in rows]
    assert policy_gradient_loss(logprob, batch, chosen).loss.item() == pytest.approx(
        plain_loss(rows, chosen), rel=2e-6, abs=1e-6
    )


@variants
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up(options: dict[str, Any], parts: int) -> None:
    rows, chosen = random_rows(5), PolicyGradientOptions(**options)
    logprob, batch = build(rows)
    whole = policy_gradient_loss(logprob, batch, chosen)
    whole.loss.backward()
    loss, gradient, metrics = 0.0, [], dict.fromkeys(whole.metrics, 0.0)
    for part in range(parts):
        piece = rows[part * 8 // parts : (part + 1) * 8 // parts]
        logprob_part, batch_part = build(piece, totals=rows)
        output = policy_gradient_loss(logprob_part, batch_part, chosen)
        output.loss.backward()
        assert logprob_part.grad is not None
        loss += output.loss.item()
        gradient += logprob_part.grad.tolist()
        metrics = {name: metrics[name] + value for name, value in output.metrics.items()}
    assert logprob.grad is not None
    assert loss == pytest.approx(whole.loss.item(), rel=1e-5, abs=1e-6)
    assert gradient == pytest.approx(logprob.grad.tolist(), rel=1e-5, abs=1e-7)
    assert metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-6)


@variants
def test_masked_values_cannot_reach_loss_gradient_or_figures(options: dict[str, Any]) -> None:
    clean = [Row([-0.5, -1.0], [-0.6, -0.9], [-0.4, -1.1], [-0.7, -0.8], 1.0), Row([-1.0] * 3, mask=0.0)]
    for poison in (INF, -INF, NAN):
        dirty = [clean[0], Row([poison] * 3, [poison] * 3, [NAN] * 3, [-poison] * 3, poison, mask=0.0)]
        loss, gradient, metrics = run(dirty, **options)
        assert (loss, gradient) == run(clean, **options)[:2]
        assert metrics == run(clean, **options)[2]
        assert gradient[2:] == [0.0, 0.0, 0.0]


# Where the loss has no detached factor, automatic and numerical gradients agree, in double precision.
@pytest.mark.parametrize("name", ["dapo", "gspo corrected", "reinforce", "dual clip", "icepop", "seq-mask-tis"])
def test_gradients_equal_numerical_ones(name: str) -> None:
    options = PolicyGradientOptions(**{**VARIANTS[name], "reference_policy_kl_penalty": 0.0})
    logprob, batch = build(random_rows(7), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda lp: policy_gradient_loss(lp, batch, options).loss, (logprob,))


# --- by hand -----------------------------------------------------------------------------------------------------


def test_clipping_by_hand() -> None:
    # Ratios 1.5, 1.5, 0.5, 0.5 with A = 2, -2, 2, -2 and the range 0.8 to 1.2:
    #   A = 2,  ratio 1.5: max(-3, -2.4) = -2.4, clipped, gradient 0
    #   A = -2, ratio 1.5: max(3, 2.4)   = 3,    gradient -A ratio = 3
    #   A = 2,  ratio 0.5: max(-1, -1.6) = -1,   gradient -1
    #   A = -2, ratio 0.5: max(1, 1.6)   = 1.6,  gradient 0
    # Mean 1.2 / 4 = 0.3.
    log = [math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5)]
    rows = [Row([value - 1], [-1.0], advantage=a) for value, a in zip(log, [2, -2, 2, -2], strict=True)]
    loss, gradient, metrics = run(rows)
    assert loss == pytest.approx(0.3)
    assert gradient == pytest.approx([0, 0.75, -0.25, 0], abs=1e-7)
    assert metrics["probs_ratio"] == pytest.approx(1.0)
    assert metrics["probs_ratio_clamped"] == pytest.approx(1.0)
    assert metrics["ratio_clipped_fraction"] == 1.0


def test_dual_clip_caps_only_negative_advantages() -> None:
    # ratio 4, A = -1: max(4, 1.2) = 4, capped at c = 3 without gradient. A = 1: max(-4, -1.2) = -1.2 stays.
    # ratio 2, A = -1: 2 stays, gradient 2 / 3 tokens.
    log = [math.log(4), math.log(4), math.log(2)]
    rows = [Row([value - 2], [-2.0], advantage=a) for value, a in zip(log, [-1, 1, -1], strict=True)]
    loss, gradient, _ = run(rows, ratio_clip_c=3.0)
    assert loss == pytest.approx((3 - 1.2 + 2) / 3)
    assert gradient == pytest.approx([0, 0, 2 / 3], abs=1e-7)


def test_gspo_shares_one_ratio_in_a_row() -> None:
    # lp - prev = 0.3, -0.1: mean 0.1, ratio e^0.1 = 1.10517 for both tokens, A = 1, N = 2 rows.
    # Row loss -ratio; its gradient -ratio / 2 tokens for each, / N. The other row has A = 0.
    rows = [Row([-0.7, -1.1], [-1.0, -1.0], advantage=1.0), Row([-1.0] * 3, [-1.5] * 3)]
    loss, gradient, _ = run(rows, **SEQUENCE_LEVEL)
    assert loss == pytest.approx(-math.exp(0.1) / 2)
    assert gradient == pytest.approx([-math.exp(0.1) / 4] * 2 + [0] * 3, abs=1e-7)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    # ratio 1.5 clipped to 1.2: loss -A 1.2 lp, gradient -A 1.2, with A = 2 and lp = ln 1.5 - 1.
    lp = math.log(1.5) - 1
    loss, gradient, _ = run([Row([lp], [-1.0], advantage=2.0)], use_cispo=True)
    assert loss == pytest.approx(-2.4 * lp)
    assert gradient == pytest.approx([-2.4])


def test_cispo_takes_no_gradient_through_the_ratio() -> None:
    # ratio 1.1, inside the range: loss -A 1.1 lp, gradient -A 1.1 (not -A 1.1 (1 + lp)).
    lp = math.log(1.1) - 2
    loss, gradient, _ = run([Row([lp], [-2.0], advantage=-1.0)], use_cispo=True)
    assert loss == pytest.approx(1.1 * lp)
    assert gradient == pytest.approx([1.1])


def test_a_masked_token_of_a_live_row_is_in_no_row_mean() -> None:
    # Of three tokens the middle one is masked: the row has the tokens 1 and 3, lp - prev = 0.1 and 0.3, mean 0.2;
    # prev - gen = 0.2 and 0, so the row's weight is e^0.2.
    rows = [Row([-0.9, NAN, -1.7], [-1.0, INF, -2.0], [-1.2, -INF, -2.0], advantage=1.0)]
    logprob, batch = build(rows)
    batch = replace(batch, weight=torch.tensor([1.0, 0.0, 1.0]), num_trained=torch.tensor([2.0]), valid_tokens=2.0)
    options = PolicyGradientOptions(
        reference_policy_kl_penalty=0.0, ratio_clip_min=0.5, ratio_clip_max=0.5, **SEQUENCE_LEVEL, **CORRECTION
    )
    output = policy_gradient_loss(logprob, batch, options)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-math.exp(0.4))
    assert output.metrics["sampling_importance_ratio"] == pytest.approx(math.exp(0.2))
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-math.exp(0.4) / 2, 0, -math.exp(0.4) / 2])


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    loss, gradient, _ = run([Row([-0.5, -1.5], [-9.0, -9.0], advantage=3.0)], disable_ppo_ratio=True)
    assert loss == pytest.approx(-3 * (-0.5 - 1.5) / 2)
    assert gradient == pytest.approx([-1.5, -1.5])


def test_the_forced_ratio_is_one_and_reads_no_previous_logprob() -> None:
    rows = [Row([-0.5, -1.5], [NAN, INF], [-0.4, -1.5], advantage=3.0)]
    loss, gradient, metrics = run(rows, force_on_policy_ratio=True, **CORRECTION)
    # The sampler's weights come from the current policy: e^-0.1 and 1.
    assert metrics["probs_ratio"] == 1.0
    assert loss == pytest.approx(-3 * (math.exp(-0.1) + 1) / 2)
    assert gradient == pytest.approx([-1.5 * math.exp(-0.1), -1.5])


def test_token_and_sequence_means_differ_by_length() -> None:
    # Ratio 1: row losses -1 (4 tokens) and 2 (1 token). Tokens: (-4 + 2) / 5; sequences: (-1 + 2) / 2.
    rows = [Row([-1.0] * 4, advantage=1.0), Row([-1.0], advantage=-2.0)]
    assert run(rows)[0] == pytest.approx(-0.4)
    assert run(rows, token_level_loss=False)[0] == pytest.approx(0.5)


# prev - gen = ln 2, ln 0.25: weights 2 and 0.25, geometric mean sqrt(0.5) = 0.707, product 0.5. Ratio 1, A = -1, so
# each token's loss is its weight.
WEIGHTED = [Row([-1.0, -2.0], gen=[-1.0 - math.log(2), -2.0 + math.log(4)], advantage=-1.0)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1]),
        (CORRECTION, [2, 0.25]),
        (truncation("tis", 1.5), [1.5, 0.25]),
        (truncation("tis", 1.5, 0.5), [1.5, 0.5]),
        (truncation("icepop", 1.5, 0.2), [0, 0.25]),
        (truncation("icepop", 2.5, 0.5), [2, 0]),
        (truncation("seq-mask-tis", 1.5, 0.7), [2, 0.25]),
        (truncation("seq-mask-tis", 1.5, 0.8), [0, 0]),
        ({**CORRECTION, **SEQUENCE_LEVEL}, [0.5, 0.5]),
    ],
)
def test_importance_weights_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    loss, gradient, metrics = run(WEIGHTED, **options)
    assert loss == pytest.approx(sum(expected) / 2)
    if not options.get("sequence_level_importance_ratios"):
        assert gradient == pytest.approx([value / 2 for value in expected])
    if options:
        assert metrics["sampling_importance_ratio"] == pytest.approx(sum(expected) / 2)


def test_a_weight_that_is_not_finite_counts_as_zero() -> None:
    rows = [Row([-1.0, -1.0], gen=[-INF, -1.0], advantage=-1.0)]
    loss, gradient, _ = run(rows, **CORRECTION)
    assert loss == pytest.approx(0.5)
    assert gradient == pytest.approx([0, 0.5])


# --- KL ----------------------------------------------------------------------------------------------------------


# With r = ref - lp and u = exp(lp - detach(lp)): d(u f(r))/dlp = f(r) - f'(r).
#   k1: -r + 1;   k2: r^2/2 - r;   k3: (e^r - 1 - r) - (e^r - 1) = -r.
@pytest.mark.parametrize("r", [-1.5, -0.2, 0.0, 0.7, 2.0])
@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        ("k1", lambda r: -r, lambda r: 1 - r),
        ("k2", lambda r: r * r / 2, lambda r: r * r / 2 - r),
        ("k3", lambda r: math.exp(r) - 1 - r, lambda r: -r),
    ],
)
def test_kl_value_and_gradient(kind: str, r: float, value: Any, slope: Any) -> None:
    rows = [Row([-3.0], ref=[-3.0 + r])]
    loss, gradient, metrics = run(rows, reference_policy_kl_penalty=0.5, reference_policy_kl_type=kind)
    assert loss == pytest.approx(0.5 * value(r), abs=1e-6)
    assert gradient == pytest.approx([0.5 * slope(r)], abs=1e-6)
    assert metrics["kl_penalty"] == pytest.approx(value(r), abs=1e-6)


def test_the_score_term_makes_the_gradient_that_of_the_kl() -> None:
    # Over a whole vocabulary, sum_v p_v * (d loss_v / d lp_v) * (d lp_v / d logits) is the gradient of KL(p || q).
    logits = torch.tensor([0.3, -0.5, 1.1, 0.2], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([1.0, 0.1, -0.4, 0.3], dtype=torch.float64), 0)
    logprob = torch.log_softmax(logits, 0)
    (exact,) = torch.autograd.grad((logprob.exp() * (logprob - reference)).sum(), logits)
    for kind in ("k1", "k3"):
        logprob = torch.log_softmax(logits, 0)
        _, batch = build([Row(logprob.tolist(), ref=reference.tolist())], dtype=torch.float64)
        # Entries weighted by their probability: the expectation over samples.
        batch = replace(batch, weight=logprob.detach().exp(), valid_tokens=1.0)
        options = PolicyGradientOptions(reference_policy_kl_penalty=1.0, reference_policy_kl_type=kind)
        (gradient,) = torch.autograd.grad(policy_gradient_loss(logprob, batch, options).loss, logits)
        assert gradient.tolist() == pytest.approx(exact.tolist(), abs=1e-12)


def test_on_policy_approximation_weights_the_kl() -> None:
    # u = exp(lp - gen) = e^0.2; k3 at r = 0.5; gradient -u r.
    rows = [Row([-1.0], gen=[-1.2], ref=[-0.5])]
    loss, gradient, _ = run(rows, reference_policy_kl_penalty=2.0, use_on_policy_kl_approximation=True)
    assert loss == pytest.approx(2 * math.exp(0.2) * (math.exp(0.5) - 1.5))
    assert gradient == pytest.approx([-2 * math.exp(0.2) * 0.5])


def test_on_policy_approximation_drops_weights_that_are_not_finite() -> None:
    rows = [Row([-1.0, -1.0], gen=[-INF, -1.0], ref=[-0.5, -0.5])]
    loss, gradient, _ = run(rows, reference_policy_kl_penalty=2.0, use_on_policy_kl_approximation=True)
    assert loss == pytest.approx(math.exp(0.5) - 1.5)
    assert gradient == pytest.approx([0, -0.5])


@pytest.mark.parametrize(
    ("kind", "r", "expected"),
    [("k3", 3.0, 10.0), ("k3", -30.0, 10.0), ("k1", -30.0, 10.0), ("k1", 30.0, -10.0), ("k2", 5.0, 10.0)],
)
def test_a_saturated_kl_has_no_gradient(kind: str, r: float, expected: float) -> None:
    rows = [Row([-40.0], ref=[-40.0 + r])]
    loss, gradient, _ = run(rows, reference_policy_kl_penalty=1.0, reference_policy_kl_type=kind)
    assert (loss, gradient) == (expected, [0.0])


def test_the_input_clamp_bounds_the_kl_alone() -> None:
    # Without an output clamp: r = -30 is taken as -20, k3 = e^-20 - 1 + 20 = 19; no gradient.
    rows = [Row([-1.0], ref=[-31.0])]
    loss, gradient, _ = run(rows, reference_policy_kl_penalty=1.0, kl_output_clamp_value=None)
    assert (loss, gradient) == (pytest.approx(19.0), [0.0])
    # Without either: k3 = e^-30 - 1 + 30 = 29, gradient -r = 30.
    loss, gradient, _ = run(
        rows, reference_policy_kl_penalty=1.0, kl_output_clamp_value=None, kl_input_clamp_value=None
    )
    assert (loss, gradient) == (pytest.approx(29.0), pytest.approx([30.0]))


def test_without_penalty_the_reference_is_not_read() -> None:
    loss, gradient, metrics = run([Row([-1.0], ref=[NAN], advantage=1.0)])
    assert (loss, gradient, metrics["kl_penalty"]) == (-1.0, [-1.0], 0.0)


# --- figures -----------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    # One trained row: lp - gen = 0.1 and 0.2, prev - gen = 0.3 and -0.4.
    row = Row([-0.9, -1.8], [-0.7, -2.4], [-1.0, -2.0], advantage=1.0)
    metrics = run([row, Row([-5.0], mask=0.0)])[2]
    r, s = math.exp(-0.2), math.exp(0.6)
    expected = {
        "probs_ratio": (r + s) / 2,
        "probs_ratio_clamped": (r + 1.2) / 2,
        "ratio_clipped_fraction": 0.5,
        "approx_entropy": (math.exp(0.1) * 0.9 + math.exp(0.2) * 1.8) / 2,
        "token_mult_prob_error": (math.exp(0.3) + math.exp(0.4)) / 2,
        "gen_kl_error": (math.exp(0.3) - 1.3 + math.exp(-0.4) - 0.6) / 2,
        "sampling_importance_ratio": (math.exp(0.3) + math.exp(-0.4)) / 2,
        "kl_penalty": 0.0,
    }
    assert metrics == pytest.approx(expected, rel=1e-5)


# --- DPO ---------------------------------------------------------------------------------------------------------

PAIRS = [
    Row([-1.0, -2.0], ref=[-1.5, -2.1], pair=7, is_chosen=True),  # sum of lp - ref = 0.6, mean 0.3
    Row([-3.0, -1.0, -2.0], ref=[-2.5, -1.0, -1.8], pair=9),  # -0.7, mean -0.7/3
    Row([-2.0], ref=[-1.6], pair=9, is_chosen=True),  # -0.4
    Row([-1.0, -1.0], ref=[-1.1, -1.3], pair=7),  # 0.4, mean 0.2
]


def softplus(value: float) -> float:
    """-log sigmoid(-value)."""
    return math.log1p(math.exp(value))


def test_dpo_by_hand() -> None:
    # Margins: pair 7: 0.6 - 0.4 = 0.2; pair 9: -0.4 + 0.7 = 0.3. nll: 3 and 2.
    logprob, batch = build(PAIRS)
    options = PreferenceOptions(0.5, preference_loss_weight=2.0, sft_loss_weight=0.25)
    output = dpo_loss(logprob, batch, options)
    preference = (softplus(-0.1) + softplus(-0.15)) / 2
    assert output.loss.item() == pytest.approx(2 * preference + 0.25 * 2.5)
    assert output.metrics == pytest.approx(
        {
            "sft_loss": 2.5,
            "preference_loss": preference,
            "accuracy": 1.0,
            "rewards_chosen_mean": 0.1,
            "rewards_rejected_mean": -0.15,
        },
        rel=1e-5,
    )
    # d loss / d lp of a chosen token: -2 beta sigmoid(-beta margin) / pairs - 0.25 / pairs; rejected: the opposite sign
    # of the first term alone.
    output.loss.backward()
    seven, nine = (2 * 0.5 / (1 + math.exp(0.5 * margin)) / 2 for margin in (0.2, 0.3))
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-seven - 0.125] * 2 + [nine] * 3 + [-nine - 0.125] + [seven] * 2)


def test_dpo_averages() -> None:
    # Averaged: pair 7: 0.3 - 0.2 = 0.1; pair 9: -0.4 + 0.7/3 = -1/6 (lost). nll: 1.5 and 2.
    logprob, batch = build(PAIRS)
    options = PreferenceOptions(1.0, sft_loss_weight=1.0, preference_average_log_probs=True, sft_average_log_probs=True)
    output = dpo_loss(logprob, batch, options)
    assert output.loss.item() == pytest.approx((softplus(-0.1) + softplus(1 / 6)) / 2 + 1.75)
    assert output.metrics["accuracy"] == 0.5


def test_dpo_gradients_equal_numerical_ones() -> None:
    logprob, batch = build(PAIRS, dtype=torch.float64)
    options = PreferenceOptions(0.7, sft_loss_weight=0.3, preference_average_log_probs=True)
    assert torch.autograd.gradcheck(lambda lp: dpo_loss(lp, batch, options).loss, (logprob,))


def test_dpo_pairs_add_up_over_micro_batches() -> None:
    options = PreferenceOptions(0.5, sft_loss_weight=0.25)
    rows = [row for row in random_rows(11) if row.pair != 1]
    whole = dpo_loss(*build(rows), options)
    parts = [dpo_loss(*build(rows[i : i + 2], totals=rows), options) for i in (0, 2, 4)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item())
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name] for part in parts) == pytest.approx(value, abs=1e-6)


def test_a_masked_pair_counts_nowhere() -> None:
    masked = [
        Row([INF], ref=[NAN], pair=1, is_chosen=True, mask=0.0),
        Row([-INF, NAN], ref=[INF, INF], pair=1, mask=0.0),
    ]
    options = PreferenceOptions(0.5, sft_loss_weight=0.25)
    logprob, batch = build([*masked, *PAIRS])
    output = dpo_loss(logprob, batch, options)
    output.loss.backward()
    expected = dpo_loss(*build(PAIRS), options)
    assert output.loss.item() == expected.loss.item()
    assert output.metrics == expected.metrics
    assert logprob.grad is not None
    assert logprob.grad[:3].tolist() == [0, 0, 0]
    # A micro-batch of masked pairs alone has a share of 0.
    logprob, batch = build(masked, totals=PAIRS)
    output = dpo_loss(logprob, batch, options)
    output.loss.backward()
    assert output.loss.item() == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PAIRS[:3], "pair 7 has no rejected"),
        (PAIRS[1:], "pair 7 has no chosen"),
        ([replace(PAIRS[0], mask=0.0), *PAIRS[1:]], "pair 7 has no chosen"),
        ([*PAIRS, PAIRS[0]], "second chosen"),
        ([*PAIRS, Row([-1.0])], "in no pair"),
    ],
)
def test_dpo_refuses_pairs_that_are_not_whole(rows: list[Row], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        dpo_loss(*build(rows), PreferenceOptions())


# --- SFT, empty batches, options ---------------------------------------------------------------------------------


def test_sft_is_one_mean_over_all_trained_tokens() -> None:
    # (1 + 2 + 3) / 3, whichever row they are in; the masked row is in neither sum.
    rows = [Row([-1.0, -2.0]), Row([NAN, -7.0], mask=0.0), Row([-3.0])]
    logprob, batch = build(rows)
    output = sft_loss(logprob, batch)
    output.loss.backward()
    assert output.loss.item() == 2.0
    assert output.metrics == {"num_tokens": 3.0}
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-1 / 3, -1 / 3, 0, 0, -1 / 3])
    parts = [sft_loss(*build(rows[:1], totals=rows)).loss, sft_loss(*build(rows[1:], totals=rows)).loss]
    assert sum(parts).item() == pytest.approx(2.0)  # type: ignore[union-attr]


def test_half_precision_is_widened() -> None:
    logprob, batch = build([Row([-1.0, -2.0])])
    assert sft_loss(logprob.detach().bfloat16(), batch).loss.dtype == torch.float32


def test_a_global_batch_without_trained_tokens_is_refused() -> None:
    logprob, batch = build([Row([-1.0], mask=0.0), Row([-2.0], mask=0.0)])
    for compute in (
        lambda: policy_gradient_loss(logprob, batch, PolicyGradientOptions()),
        lambda: dpo_loss(logprob, batch, PreferenceOptions()),
        lambda: sft_loss(logprob, batch),
    ):
        with pytest.raises(PolicyError, match="trains 0 tokens"):
            compute()


def test_a_masked_micro_batch_of_a_live_batch_has_no_share() -> None:
    masked, live = Row([-1.0, -2.0], advantage=1.0, mask=0.0), Row([-1.0])
    logprob, batch = build([masked], totals=[masked, live])
    output = policy_gradient_loss(logprob, batch, PolicyGradientOptions())
    output.loss.backward()
    assert logprob.grad is not None
    assert (output.loss.item(), logprob.grad.tolist()) == (0.0, [0.0, 0.0])
    assert set(output.metrics.values()) == {0.0}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"reference_policy_kl_type": "k4"}, "reference_policy_kl_type"),
        ({"ratio_clip_c": 1.0}, "ratio_clip_c"),
        ({"sequence_level_importance_ratios": True}, "sequence_level_importance_ratios"),
        ({"force_on_policy_ratio": True, "disable_ppo_ratio": True}, "force_on_policy_ratio"),
        ({"use_cispo": True, "disable_ppo_ratio": True}, "disable_ppo_ratio"),
        ({"use_cispo": True, "force_on_policy_ratio": True}, "force_on_policy_ratio"),
        ({"use_cispo": True, **SEQUENCE_LEVEL}, "sequence_level_importance_ratios"),
        ({"use_cispo": True, "ratio_clip_c": 3.0}, "ratio_clip_c"),
        ({"use_cispo": True, "token_level_loss": False}, "token_level_loss"),
        ({"truncated_importance_sampling_ratio": 2.0}, "truncated_importance_sampling_ratio"),
        ({"truncated_importance_sampling_ratio_min": 0.5}, "truncated_importance_sampling_ratio_min"),
        ({**truncation("tis", 2.0), "use_importance_sampling_correction": False}, "sampling_type"),
        (truncation("other", 2.0), "truncated_importance_sampling_type"),
        (truncation("tis", 0.0), "truncated_importance_sampling_ratio"),
        (truncation("icepop", 2.0), "truncated_importance_sampling_ratio_min"),
        (truncation("tis", 2.0, 3.0), "truncated_importance_sampling_ratio_min"),
        ({**truncation("seq-mask-tis", 2.0, 0.5), **SEQUENCE_LEVEL}, "sequence_level_importance_ratios"),
    ],
)
def test_contradicting_options_are_refused_by_name(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        PolicyGradientOptions(**options)


# --- other preference losses -------------------------------------------------------------------------------------

BETA = 0.5
# Two pairs with margins (lp - ref of chosen, summed, minus that of rejected) of 3 and -1.
MARGINS = [
    Row([-1.0, -1.0], ref=[-2.0, -2.0], pair=0, is_chosen=True),
    Row([-2.0], ref=[-1.0], pair=0),
    Row([-1.5], ref=[-1.5], pair=1, is_chosen=True),
    Row([-1.0, -2.0], ref=[-2.0, -2.0], pair=1),
]


def log1p_exp(value: float) -> float:
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("options", "expected", "slopes"),
    [
        # (margin - 1 / (2 beta))^2: 2^2 and 2^2; slopes 2 (margin - 1).
        ({"loss_type": "ipo"}, (4.0 + 4.0) / 2, (4.0, -4.0)),
        # max(0, 1 - beta margin): 0 and 1.5; slopes 0 and -beta.
        ({"loss_type": "hinge"}, (0.0 + 1.5) / 2, (0.0, -0.5)),
        # (1 - e) log(1 + exp(-beta m)) + e log(1 + exp(beta m)); slopes beta (sigmoid(beta m) - (1 - e)).
        (
            {"label_smoothing": 0.2},
            (0.8 * log1p_exp(-1.5) + 0.2 * log1p_exp(1.5) + 0.8 * log1p_exp(0.5) + 0.2 * log1p_exp(-0.5)) / 2,
            (0.5 * (1 / (1 + math.exp(-1.5)) - 0.8), 0.5 * (1 / (1 + math.exp(0.5)) - 0.8)),
        ),
        # ((1 - e) log(1 + exp(-beta m)) - e log(1 + exp(beta m))) / (1 - 2 e);
        # slopes beta (-(1 - e) sigmoid(-beta m) - e sigmoid(beta m)) / (1 - 2 e).
        (
            {"loss_type": "robust", "label_smoothing": 0.2},
            (0.8 * log1p_exp(-1.5) - 0.2 * log1p_exp(1.5) + 0.8 * log1p_exp(0.5) - 0.2 * log1p_exp(-0.5)) / 2 / 0.6,
            (
                0.5 * (-0.8 / (1 + math.exp(1.5)) - 0.2 / (1 + math.exp(-1.5))) / 0.6,
                0.5 * (-0.8 / (1 + math.exp(-0.5)) - 0.2 / (1 + math.exp(0.5))) / 0.6,
            ),
        ),
    ],
)
def test_preference_losses_by_hand(options: dict[str, Any], expected: float, slopes: tuple[float, float]) -> None:
    logprob, batch = build(MARGINS)
    output = dpo_loss(logprob, batch, PreferenceOptions(reference_policy_kl_penalty=BETA, **options))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    first, second = (slope / 2 for slope in slopes)  # two pairs
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([first, first, -first, second, -second, -second], rel=1e-5, abs=1e-7)
    assert output.metrics["accuracy"] == 0.5


def test_ipo_of_averages() -> None:
    """Margins of averages: 1 + 1 = 2 and 0 - 0.5; (m - 1)^2 = 1 and 2.25."""
    logprob, batch = build(MARGINS)
    options = PreferenceOptions(reference_policy_kl_penalty=BETA, loss_type="ipo", preference_average_log_probs=True)
    assert dpo_loss(logprob, batch, options).loss.item() == pytest.approx(3.25 / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss_type": "kto"}, "loss_type"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss_type": "robust"}, "label_smoothing"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ],
)
def test_preference_options_that_say_nothing_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PreferenceOptions(**options)


# --- entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1.0 + 2.0 + 6.0) / 3),
        ({"token_level_loss": False}, ((1.0 + 2.0) / 2 + 6.0) / 2),
        ({"length_normalizer": 4}, (1.0 + 2.0 + 6.0) / (2 * 4)),
    ],
)
def test_the_entropy_is_taken_from_the_loss(options: dict[str, Any], expected: float) -> None:
    """Entropies 1 and 2 of one row, 6 of another, NaN of a masked one; nothing but them in the loss."""
    rows = [Row([-1.0, -2.0]), Row([-3.0]), Row([-1.0], mask=0.0)]
    logprob, batch = build(rows)
    entropy = torch.tensor([1.0, 2.0, 6.0, float("nan")], requires_grad=True)
    batch = replace(batch, entropy=entropy)
    chosen = PolicyGradientOptions(reference_policy_kl_penalty=0.0, entropy_coefficient=0.1, **options)
    output = policy_gradient_loss(logprob, batch, chosen)
    assert output.loss.item() == pytest.approx(-0.1 * expected)
    assert output.metrics["entropy"] == pytest.approx(3.0)  # figures stay means over tokens
    output.loss.backward()
    assert entropy.grad is not None
    assert float(entropy.grad @ torch.tensor([1.0, 2.0, 6.0, 0.0])) == pytest.approx(-0.1 * expected)
    assert entropy.grad[3] == 0


def test_an_entropy_that_is_only_measured_changes_nothing() -> None:
    rows = random_rows(3)
    logprob, batch = build(rows)
    batch = replace(batch, entropy=torch.rand_like(logprob))
    measured = policy_gradient_loss(logprob, batch, PolicyGradientOptions(entropy_coefficient=0.0))
    assert measured.loss == policy_gradient_loss(logprob, batch, PolicyGradientOptions()).loss
    assert 0 < measured.metrics["entropy"] < 1


def test_an_entropy_that_is_not_there_or_cannot_be_is_refused() -> None:
    logprob, batch = build([Row([-1.0])])
    with pytest.raises(PolicyError, match=r"loss_fn.entropy_coefficient: the policy computed no entropy"):
        policy_gradient_loss(logprob, batch, PolicyGradientOptions(entropy_coefficient=0.0))
    with pytest.raises(ConfigError, match="entropy_coefficient"):
        PolicyGradientOptions(entropy_coefficient=-0.1)


# --- a constant length ------------------------------------------------------------------------------------------


def test_a_constant_length_divides_in_place_of_the_tokens() -> None:
    """On policy, advantages 2 and -1 on 2 and 3 tokens: -(2 * 2 - 1 * 3) / (2 sequences * 10)."""
    rows = [Row([-1.0, -2.0], advantage=2.0), Row([-1.0, -1.0, -1.0], advantage=-1.0)]
    loss, gradient, figures = run(rows, length_normalizer=10)
    assert loss == pytest.approx(-1 / 20)
    assert gradient == pytest.approx([-2 / 20] * 2 + [1 / 20] * 3)
    assert figures["probs_ratio"] == pytest.approx(1.0)  # figures stay means over tokens


def test_a_constant_length_divides_the_kl_penalty_too() -> None:
    """k2 of a log-ratio of 1 is 1/2, on one token of one sequence of length 4; weight 0.1."""
    rows = [Row([-1.0], ref=[0.0])]
    options = {"reference_policy_kl_penalty": 0.1, "reference_policy_kl_type": "k2"}
    assert run(rows, length_normalizer=4, **options)[0] == pytest.approx(0.1 * 0.5 / 4)
    assert run(rows, **options)[0] == pytest.approx(0.1 * 0.5)


@pytest.mark.parametrize("options", [{"length_normalizer": 0}, {"length_normalizer": 4, "token_level_loss": False}])
def test_a_constant_length_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="length_normalizer"):
        PolicyGradientOptions(**options)

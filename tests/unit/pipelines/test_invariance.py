"""A loss and its gradient are those of the global batch, in micro-batches or one, forests or padded rows."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
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
from regimen.policy.base import Loss, LossOutput, Supervision
from regimen.policy.local import LocalPolicy, LocalPolicyOptions, supervision
from regimen.tokens.forest import Forest, TrainingSequence, build_forest, normalisers

PATHS = [
    ([5, 6, 7, 8, 20, 21, 22], [(4, 7)]),
    ([5, 6, 7, 8, 20, 21, 30, 31], [(4, 6), (7, 8)]),
    ([5, 6, 7, 8, 20, 21, 22], [(4, 7)]),  # an identical sibling
    ([5, 6, 7, 8, 20, 21], [(4, 6)]),  # ends inside a path
    ([5, 6, 9, 40, 41, 42, 43], [(3, 5), (6, 7)]),
    ([50, 51, 52, 53], [(2, 4)]),
    ([50, 51, 52], [(1, 3)]),
    ([60, 61], [(1, 2)]),
]


def sequences() -> list[TrainingSequence]:
    """Four pairs; values off policy, so that clips and weights say something."""
    random = np.random.default_rng(0)
    made = []
    for index, (ids, spans) in enumerate(PATHS):
        size = sum(stop - start for start, stop in spans)
        base = -5 + random.normal(0, 0.5, size)
        columns = {
            name: (base + random.normal(0, 0.4, size)).astype(np.float32)
            for name in ("sampled_logprob", "previous_logprob", "reference_logprob")
        }
        advantage = np.full(size, random.normal(), np.float32)
        made.append(
            TrainingSequence(ids, spans, pair=index // 2, is_chosen=index % 2 == 0, advantage=advantage, **columns)
        )
    return made


def forests(parts: int, *, share: bool) -> list[Forest]:
    """The sequences in as many micro-batches; pairs stay whole."""
    everything = sequences()
    tokens, count = normalisers(everything)
    size = len(everything) // parts
    return [
        build_forest(everything[start : start + size], valid_tokens=tokens, valid_sequences=count, share=share)
        for start in range(0, len(everything), size)
    ]


def policy_gradient(**options: Any) -> Loss:
    chosen = PolicyGradientOptions(**options)
    return lambda logprob, batch: policy_gradient_loss(logprob, batch, chosen)


def preference(**options: Any) -> Loss:
    chosen = PreferenceOptions(**options)
    return lambda logprob, batch: dpo_loss(logprob, batch, chosen)


TIS = {
    "use_importance_sampling_correction": True,
    "truncated_importance_sampling_type": "tis",
    "truncated_importance_sampling_ratio": 2.0,
}
LOSSES: dict[str, Loss] = {
    "sft": sft_loss,
    "grpo": policy_gradient(**TIS, ratio_clip_c=3.0),
    "dr_grpo": policy_gradient(length_normalizer=8),
    "gspo": policy_gradient(sequence_level_importance_ratios=True, token_level_loss=False, **TIS),
    "entropy": policy_gradient(entropy_coefficient=0.5),
    "cispo": policy_gradient(use_cispo=True, reference_policy_kl_penalty=0.0),
    "reinforce": policy_gradient(disable_ppo_ratio=True, reference_policy_kl_type="k2"),
    "dpo": preference(sft_loss_weight=0.3),
    "ipo": preference(loss_type="ipo", preference_average_log_probs=True),
    "robust": preference(loss_type="robust", label_smoothing=0.1),
}


def policy_of(tiny: ModuleType) -> LocalPolicy:
    return LocalPolicy(tiny.tiny_model(), LocalPolicyOptions(precision="float32", with_entropy=True))


def gradient(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def by_forests(tiny: ModuleType, loss: Loss, parts: list[Forest]) -> tuple[float, Tensor, dict[str, float]]:
    policy = policy_of(tiny)
    found: list[Tensor] = []
    result = policy.train_step(parts, loss, before_step=lambda: found.append(gradient(policy.model)))
    return result.loss, found[0], result.metrics


def by_padded_rows(tiny: ModuleType, loss: Callable[[Tensor, Supervision], LossOutput]) -> tuple[float, Tensor]:
    """The plain way: right-padded rows, a mask, the model's own attention."""
    model = tiny.tiny_model()
    model.set_attn_implementation("eager")
    everything = sequences()
    length = max(len(sequence.ids) for sequence in everything)
    ids = torch.tensor([[*s.ids, *[0] * (length - len(s.ids))] for s in everything])
    mask = torch.tensor([[1] * len(s.ids) + [0] * (length - len(s.ids)) for s in everything])
    every = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    entropies, every = -(every.exp() * every).sum(-1), every.gather(2, ids[:, 1:, None])[..., 0]
    logprob, entropy = (
        torch.cat([values[row, s.trained_positions() - 1] for row, s in enumerate(everything)])
        for values in (every, entropies)
    )
    output = loss(logprob, supervision(build_forest(everything, share=False), torch.device("cpu"), entropy))
    output.loss.backward()
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as the policy does before its step
    assert total > 0
    return output.loss.item(), gradient(model)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_do_not_depend_on_the_layout(tiny: ModuleType, name: str) -> None:
    loss = LOSSES[name]
    expected, slope = by_padded_rows(tiny, loss)
    for share in (True, False):
        for parts in (1, 2, 4):
            found, found_slope, _ = by_forests(tiny, loss, forests(parts, share=share))
            assert found == pytest.approx(expected, rel=1e-5), (share, parts)
            torch.testing.assert_close(found_slope, slope, rtol=1e-4, atol=2e-6)


def test_figures_do_not_depend_on_the_layout(tiny: ModuleType) -> None:
    for name in ("gspo", "dpo"):
        one, *others = [by_forests(tiny, LOSSES[name], forests(parts, share=True))[2] for parts in (1, 4)]
        for other in others:
            assert other == pytest.approx(one, rel=1e-4, abs=1e-6), name

"""Figures of a step that is made of several optimiser steps."""

from __future__ import annotations

import pytest

from regimen.pipelines.updates import step_figures
from regimen.policy.base import StepResult
from regimen.tokens.forest import Forest, TrainingSequence, build_forest


def forest(num_trained: int, valid_tokens: float) -> Forest:
    sequence = TrainingSequence(list(range(num_trained + 2)), [(2, num_trained + 2)])
    return build_forest([sequence], valid_tokens=valid_tokens, valid_sequences=1)


def result(loss: float, norm: float, ratio: float, computed: int) -> StepResult:
    return StepResult(loss, norm, 1e-3, {"probs_ratio": ratio}, computed)


def test_figures_of_tokens_are_means_over_all_computed_tokens() -> None:
    """First: 4 of 8 tokens computed, share 0.5 of a mean of 1; second: 6 of 6 tokens with a mean of 1.5."""
    steps = [
        (result(0.2, 1.0, 0.5, 6), [forest(4, 8)]),
        (result(0.6, 3.0, 1.5, 8), [forest(2, 6), forest(4, 6)]),
    ]
    figures = step_figures(steps)
    assert figures["probs_ratio"] == pytest.approx((4 * 1.0 + 6 * 1.5) / 10)
    assert (figures["loss"], figures["grad_norm"], figures["lr"]) == pytest.approx((0.4, 2.0, 1e-3))
    assert (figures["num_updates"], figures["micro_batches"], figures["computed_tokens"]) == (2.0, 3.0, 14.0)
    assert figures["tokens_without_sharing"] == 6 + 4 + 6


def test_one_update() -> None:
    figures = step_figures([(result(0.2, 1.0, 0.5, 6), [forest(4, 8)])])
    assert (figures["loss"], figures["probs_ratio"], figures["num_updates"]) == pytest.approx((0.2, 1.0, 1.0))

"""A step's optimiser steps: what they are called together, and whether sampler and policy agree before them.

In: results of optimiser steps and their forests; log-probabilities of sampler and policy. Out: figures.
Refuses: a sampler whose log-probabilities are not the policy's.
"""

from __future__ import annotations

import numpy as np

from regimen.errors import GenerationError
from regimen.policy.base import StepResult
from regimen.policy.ranks import Ranks
from regimen.tokens.forest import Forest


class Agreement:
    """Compares the generator's log-probabilities with the policy's own, each step, before the weights change.

    float32: at most 1e-4 on every token. bfloat16: a mean of at most 0.06, rounding being what it is.
    """

    def __init__(self, precision: str) -> None:
        self.exact = precision == "float32"
        self.reset()

    def reset(self) -> None:
        """Begin a step."""
        self.total, self.count, self.largest = 0.0, 0, 0.0

    def add(self, difference: np.ndarray) -> None:
        """Take the differences of a micro-batch's trained tokens."""
        absolute = np.abs(difference)
        self.total += float(absolute.sum())
        self.count += absolute.size
        self.largest = float(np.maximum(self.largest, absolute.max(initial=0.0)))  # NaN stays NaN, unlike with max

    def pool(self, ranks: Ranks) -> None:
        """Take what every process saw, so that all judge alike."""
        parts = ranks.gather([self.total, self.count, self.largest])
        self.total, self.count = sum(part[0] for part in parts), sum(part[1] for part in parts)
        self.largest = float(np.max([part[2] for part in parts]))

    def figures(self) -> dict[str, float]:
        """The step's figures."""
        return {"gen_logprob_error_mean": self.total / max(1, self.count), "gen_logprob_error_max": self.largest}

    def check(self) -> dict[str, float]:
        """The step's figures; raises `GenerationError` beyond the bound."""
        figures = self.figures()
        mean = figures["gen_logprob_error_mean"]
        seen, bound = (self.largest, 1e-4) if self.exact else (mean, 0.06)
        if not seen <= bound:
            raise GenerationError(
                f"log-probabilities differ from the policy's by {seen:.2g} ({'largest' if self.exact else 'mean'})",
                expected=f"at most {bound:g}",
                fix="the generator has other weights, another temperature or another precision than the policy",
            )
        return figures


def step_figures(steps: list[tuple[StepResult, list[Forest]]]) -> dict[str, float]:
    """Figures of a step: the loss's own over all its tokens, means over optimiser steps, sums of what was computed."""
    results = [result for result, _ in steps]
    forests = [forest for _, part in steps for forest in part]
    return {
        **_loss_figures(steps),
        "loss": float(np.mean([result.loss for result in results])),
        "grad_norm": float(np.mean([result.grad_norm for result in results])),
        "lr": results[-1].learning_rate,
        "num_updates": float(len(steps)),
        "computed_tokens": float(sum(result.computed_tokens for result in results)),
        "tokens_without_sharing": float(sum(_unrolled(forest) for forest in forests)),
        "micro_batches": float(len(forests)),
    }


def _loss_figures(steps: list[tuple[StepResult, list[Forest]]]) -> dict[str, float]:
    """Each is a mean over all valid tokens of its update, inert ones included; here over all that were computed."""
    computed = sum(float(forest.weight.sum()) for _, forests in steps for forest in forests)
    totals: dict[str, float] = {}
    for result, forests in steps:
        for name, value in result.metrics.items():
            totals[name] = totals.get(name, 0.0) + value * forests[0].valid_tokens
    return {name: total / computed for name, total in totals.items()}


def _unrolled(forest: Forest) -> int:
    """Tokens that would be computed if no prefix were shared."""
    if not len(forest.sequence):
        return 0
    ends = np.flatnonzero(np.append(np.diff(forest.sequence) > 0, True))
    return int(np.sum(forest.depth[forest.target[ends]] + 1))

"""The policy seam: forests in, log-probabilities or a gradient step out. A policy knows no algorithm.

A loss is a pure function `(logprob [E], Supervision) -> LossOutput`; everything it needs besides the current
log-probabilities stands in `Supervision`, already normalised for the whole global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from regimen.tokens.forest import Forest


@dataclass(frozen=True, slots=True)
class Supervision:
    """What a loss may look at for one micro-batch, as tensors.

    Shapes: E entries (one per trained token of each sequence, never merged), S sequences. All floats are float32.
    A value that an algorithm does not use is zeros.
    """

    sequence: Tensor  # [E] int64, row of the sequence table
    weight: Tensor  # [E] token mask times the sample mask of its sequence
    advantage: Tensor  # [E]
    sampled_logprob: Tensor  # [E] by the generator when it sampled
    previous_logprob: Tensor  # [E] by the policy at the start of the step
    reference_logprob: Tensor  # [E] by the frozen reference
    pair: Tensor  # [S] int64, -1 where the sequence is in no pair
    is_chosen: Tensor  # [S] bool
    sample_mask: Tensor  # [S]
    num_trained: Tensor  # [S] number of trained tokens of the sequence
    valid_tokens: float  # sum of weight over the whole global batch
    valid_sequences: float  # sum of sample_mask over the whole global batch
    entropy: Tensor | None = None  # [E] of the current policy, differentiable, in nats; None where it is not computed


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss and its figures for one micro-batch.

    `loss` and each value of `metrics` are this micro-batch's share: they add up, over micro-batches and ranks, to the
    value of the whole global batch.
    """

    loss: Tensor  # scalar, float32
    metrics: dict[str, float]


Loss = Callable[[Tensor, Supervision], LossOutput]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimiser step: summed loss and metrics, the gradient norm before clipping, the learning rate used."""

    loss: float
    grad_norm: float
    learning_rate: float
    metrics: dict[str, float]
    computed_tokens: int


class LogprobReader(Protocol):
    """What gives log-probabilities: a policy, or the reference that it is compared with."""

    @property
    def num_shares(self) -> int:
        """Into how many shares the forests of a batch are divided; fewer forests leave processes idle."""
        ...

    @property
    def unrolled(self) -> str | None:
        """Why the model takes each sequence as a padded row of its own; None where sequences may share prefixes.

        Forests for rows are made with `padded`, so that the token budget counts what is computed.
        """
        ...

    def logprobs(self, forests: Sequence[Forest]) -> list[np.ndarray]:
        """Current log-probabilities of each forest's entries, `[E]` float32, without gradient."""
        ...


class Policy(LogprobReader, Protocol):
    """Log-probabilities, gradient steps, weights, checkpoints.

    Where a policy is many processes, each makes the same calls with the same arguments and gets the same results.
    """

    def train_step(
        self,
        forests: Sequence[Forest],
        loss: Loss,
        before_step: Callable[[], None] | None = None,
        *,
        advance_schedule: bool = True,
    ) -> StepResult:
        """Accumulate the loss over `forests`, clip, step. Raises `NonFiniteError` on a non-finite one.

        `before_step` is called when all gradients are there; what it raises keeps the weights as they are.
        `advance_schedule`: whether this is the last optimiser step of a step of the run.
        """
        ...

    def evaluate(self, forests: Sequence[Forest], loss: Loss) -> StepResult:
        """The same sums without a gradient."""
        ...

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Current weights under their Hugging Face names; with adapters, those that they change, merged."""
        ...

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model folder (safetensors), or peft's folder of adapters where those train."""
        ...

    def saver(self) -> Callable[[Path], None]:
        """A function that writes what `save` would write now, whatever the weights are by then."""
        ...

    def state(self) -> dict[str, Any]:
        """Optimiser and schedule state, for resuming."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...

    def save_shards(self, folder: Path) -> None:
        """Write what no single process holds into a folder of its own; all processes call it."""
        ...

    def shards_saver(self, group: Any) -> Callable[[Path], None]:
        """A function that writes what `save_shards` would write now; all processes call it, talking by `group`."""
        ...

    def load_shards(self, folder: Path) -> None:
        """Restore what `save_shards` wrote; all processes call it, before `load_state`."""
        ...

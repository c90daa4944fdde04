"""What an algorithm is to the training pipeline: where its batches come from, and a loss.

The pipeline knows no algorithm by name: it asks for one from the registry and reads these attributes.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from regimen.policy.base import LossOutput, Supervision
from regimen.tokens.forest import TrainingSequence

Batches = Literal["rows", "pairs", "episodes"]


class Algorithm(Protocol):
    """A configuration section turned into a loss.

    `batches`: rows or pairs of a data set, or episodes played in the loop. `needs_reference`: whether the loss reads
    `reference_logprob`; `needs_previous`: whether it reads `previous_logprob`, those of the policy before the step.
    """

    name: str
    batches: Batches
    needs_reference: bool
    needs_previous: bool

    def with_logprobs(self, sequences: list[TrainingSequence]) -> tuple[list[TrainingSequence], dict[str, float]]:
        """The sequences of a batch when all log-probabilities that the loss reads are there; and figures of it."""
        ...

    def loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        """This micro-batch's share of the loss."""
        ...

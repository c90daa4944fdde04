"""Supervised fine-tuning: the mean negative log-likelihood of the trained tokens of the global batch."""

from __future__ import annotations

from torch import Tensor

from regimen.algorithms.base import Batches
from regimen.algorithms.losses import sft_loss
from regimen.config.schema import TrainConfig
from regimen.policy.base import LossOutput, Supervision
from regimen.tokens.forest import TrainingSequence


class SFT:
    """See `regimen.algorithms.base.Algorithm`."""

    name = "sft"
    batches: Batches = "rows"
    needs_reference = False
    needs_previous = False

    def __init__(self, config: TrainConfig) -> None:
        self.config = config.sft

    def with_logprobs(self, sequences: list[TrainingSequence]) -> tuple[list[TrainingSequence], dict[str, float]]:
        """Nothing is changed."""
        return sequences, {}

    def loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        """See `regimen.algorithms.losses.sft_loss`."""
        return sft_loss(logprob, batch)

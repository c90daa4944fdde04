"""Direct preference optimisation (Rafailov et al. 2023), IPO, hinge and robust DPO on pairs, with an optional SFT term.

Every token that the model sampled in the chosen and in the rejected completion is trained, in all turns; tool outputs
and user turns are context. The reference is the policy as it was before training.
"""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from regimen.algorithms.base import Batches
from regimen.algorithms.losses import PreferenceOptions, dpo_loss
from regimen.config.schema import TrainConfig
from regimen.policy.base import LossOutput, Supervision
from regimen.tokens.forest import TrainingSequence


class DPO:
    """See `regimen.algorithms.base.Algorithm`."""

    name = "dpo"
    batches: Batches = "pairs"
    needs_reference = True
    needs_previous = False

    def __init__(self, config: TrainConfig) -> None:
        assert config.dpo is not None
        options = {option.name: getattr(config.dpo, option.name) for option in fields(PreferenceOptions)}
        self.options = PreferenceOptions(**options)

    def with_logprobs(self, sequences: list[TrainingSequence]) -> tuple[list[TrainingSequence], dict[str, float]]:
        """Nothing is changed."""
        return sequences, {}

    def loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        """See `regimen.algorithms.losses.dpo_loss`."""
        return dpo_loss(logprob, batch, self.options)

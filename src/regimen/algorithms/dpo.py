"""Direct preference optimisation (Rafailov et al. 2023) on pairs of episodes, with an optional SFT term.

Every token that the model sampled in the chosen and in the rejected completion is trained, in all turns; tool outputs
and user turns are context. The reference is the policy as it was before training.
"""

from __future__ import annotations

from torch import Tensor

from regimen.algorithms.base import Batches
from regimen.algorithms.losses import PreferenceOptions, dpo_loss
from regimen.config.schema import TrainConfig
from regimen.policy.base import LossOutput, Supervision


class DPO:
    """See `regimen.algorithms.base.Algorithm`."""

    name = "dpo"
    batches: Batches = "pairs"
    needs_reference = True

    def __init__(self, config: TrainConfig) -> None:
        assert config.dpo is not None
        self.options = PreferenceOptions(
            reference_policy_kl_penalty=config.dpo.reference_policy_kl_penalty,
            preference_loss_weight=config.dpo.preference_loss_weight,
            sft_loss_weight=config.dpo.sft_loss_weight,
            preference_average_log_probs=config.dpo.preference_average_log_probs,
            sft_average_log_probs=config.dpo.sft_average_log_probs,
        )

    def loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        """See `regimen.algorithms.losses.dpo_loss`."""
        return dpo_loss(logprob, batch, self.options)

"""A Hugging Face decoder that takes forests: the forward pass that every policy backend shares.

In: a causal language model, forests. Out: log-probabilities of a forest's entries, their entropies where asked for, and
the loss's side of the forest as tensors. A model that cannot take forests (`regimen.policy.layout`) gets each sequence
as a row of its own.
Refuses: a model with dropout or other noise, one whose logits are capped or scaled.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.errors import PolicyError
from regimen.models import refuse_unsupported
from regimen.policy.base import Supervision
from regimen.policy.layout import forest_states, row_states, unroll, why_unrolled
from regimen.policy.logprobs import chunked_logprobs_and_entropy, selected_logprobs
from regimen.tokens.forest import Forest


class ForestDecoder(torch.nn.Module):
    """`model` as a function from forests to log-probabilities. `temperature` divides the logits, as the sampler does.

    The vocabulary head is used inside `forward`, so that what wraps this module sees every use of every weight.
    `casts`: whether the compute dtype is reached by autocast; else the wrapper gives the weights in it.
    """

    def __init__(self, model: Any, dtype: torch.dtype, temperature: float, *, casts: bool = True) -> None:
        super().__init__()
        _refuse_dropout(model)
        refuse_unsupported(model.config)
        self.unrolled = why_unrolled(model)
        self.causal_lm = model
        self.dtype, self.temperature, self.casts = dtype, temperature, casts

    def forward(self, forest: Forest, device: torch.device, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the forest's entries, `[E]` float32, and entropies where they are asked for."""
        target, entry = np.unique(forest.target, return_inverse=True)
        with self._autocast(device):
            if self.unrolled is None:
                states = forest_states(self.causal_lm.base_model, forest, device)
                hidden = states[torch.from_numpy(forest.parent[target]).to(device)]
            else:  # a target that sequences share stands in each of their rows
                target, entry = forest.target, np.arange(len(forest.target))
                rows = unroll(forest, device)
                hidden = row_states(self.causal_lm.base_model, rows)[rows.row, rows.column]
        head = self.causal_lm.get_output_embeddings()
        arguments = (
            hidden.to(self.dtype),
            head.weight.to(self.dtype),
            None if head.bias is None else head.bias.to(self.dtype),
            torch.from_numpy(forest.tokens[target]).to(device),
            self.temperature,
        )
        place = torch.from_numpy(entry).to(device)
        if not with_entropy:
            return selected_logprobs(*arguments)[place], None
        logprob, entropy = chunked_logprobs_and_entropy(*arguments)
        return logprob[place], entropy[place]

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32 or not self.casts:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of `policy.precision`."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def supervision(forest: Forest, device: torch.device, entropy: Tensor | None = None) -> Supervision:
    """The loss's side of a forest, as tensors on `device`."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Supervision(
        sequence=tensor(forest.sequence),
        weight=tensor(forest.weight),
        advantage=tensor(forest.advantage),
        sampled_logprob=tensor(forest.sampled_logprob),
        previous_logprob=tensor(forest.previous_logprob),
        reference_logprob=tensor(forest.reference_logprob),
        pair=tensor(forest.pair),
        is_chosen=tensor(forest.is_chosen),
        sample_mask=tensor(forest.sample_mask),
        num_trained=tensor(forest.num_trained),
        valid_tokens=forest.valid_tokens,
        valid_sequences=forest.valid_sequences,
        entropy=entropy,
    )


def _refuse_dropout(model: Any) -> None:
    jitter = float(getattr(model.config, "router_jitter_noise", 0.0) or 0.0)
    if jitter:
        raise PolicyError(
            f"the model's router_jitter_noise is {jitter:g}",
            expected="0: log-probabilities of one policy must not be random",
            fix="set router_jitter_noise to 0 in the model's config.json",
        )
    dropouts = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)]
    # The dropout of adapters acts in training steps alone.
    active = [name for name, part in dropouts if part.p > 0 and "lora_dropout" not in name]
    attention = float(getattr(model.config, "attention_dropout", 0.0) or 0.0)
    if active or attention:
        raise PolicyError(
            f"the model has dropout ({', '.join(active[:3]) or f'attention_dropout={attention}'})",
            expected="0: log-probabilities of one policy must not be random",
            fix=f"set {'its dropout' if active else 'attention_dropout'} to 0 in the model's config.json",
        )

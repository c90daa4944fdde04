"""The in-process engine for models whose past is more than keys and values: the library's own loop and cache.

In and out: as `regimen.generation.transformers`. Prompts of one length are answered together, so that nothing is ever
padded, which state spaces would take for tokens; others wait until those have ended. Nothing is kept between answers.
Refuses: prompts beyond the model's positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from regimen.generation.request import Request
from regimen.generation.transformers import TransformersGeneration
from regimen.models import token_mixers


def why_rows(model: Any) -> str | None:
    """Why `model` cannot be served from a memory of keys and values; None where it can."""
    mixers = token_mixers(model)
    if mixers:
        return f"tokens are mixed outside attention, by {', '.join(mixers)}"
    if any(getattr(module, "sliding_window", None) is not None for module in model.modules()):
        return "the model has sliding windows"
    if not isinstance(getattr(model, "model", None), torch.nn.Module):
        return f"a {type(model).__name__} does not name its layers as Llama does"
    return None


class RowsGeneration(TransformersGeneration):
    """See `regimen.generation.base.Generation`."""

    def _choose_attention(self, model: Any) -> None:
        """The model's own; and no words of its folder on how to sample, which would change the distribution."""
        model.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)

    def _take(self) -> list[np.ndarray]:
        """Move those that are as long as the first one from waiting to admitted."""
        waiting = [request for request in self._waiting if not request.future.cancelled()]
        alike = [request for request in waiting if len(request.prompt) == len(waiting[0].prompt)]
        self._admitted = alike[: self.max_batch_size]
        taken = set(map(id, self._admitted))
        self._waiting = [request for request in waiting if id(request) not in taken]
        return []

    @torch.no_grad()
    def _advance(self, waiting: list[np.ndarray]) -> None:  # noqa: ARG002
        """Answer everything that was admitted."""
        self._active, self._admitted = self._admitted, []
        if not self._active:
            return
        prompts = torch.from_numpy(np.stack([request.prompt for request in self._active]))
        prompts = prompts.to(self.model.get_input_embeddings().weight.device)
        self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            logits_processor=LogitsProcessorList([_Drawing(self)]),
            stopping_criteria=StoppingCriteriaList([_AllEnded(self._active)]),
            max_new_tokens=max(request.sampling.max_new_tokens for request in self._active),
        )

    def _park(self, row: int, request: Request) -> None:
        """Nothing is kept."""

    def draw(self, logits: Tensor) -> Tensor:
        """The next token of each row, `[n]`, from its request's own random stream; 0 behind its end."""
        going = [row for row, request in enumerate(self._active) if request.stop_reason is None]
        self._sample([self._active[row] for row in going], logits[going].float())
        chosen = [0] * len(self._active)
        for row in going:
            request = self._active[row]
            chosen[row] = request.ids[-1]
            if request.on_token is not None:
                request.future.get_loop().call_soon_threadsafe(request.tell)
        return torch.tensor(chosen, device=logits.device)


class _Drawing(LogitsProcessor):
    """Leaves nothing but the token that was drawn, so that the loop's choice of the most likely one is that."""

    def __init__(self, engine: RowsGeneration) -> None:
        self.engine = engine

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG002
        """`[n, V]`: 0 at each row's token, minus infinity elsewhere."""
        chosen = self.engine.draw(scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


class _AllEnded(StoppingCriteria):
    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]  # noqa: ARG002
        """`[n]` bool: which rows have ended, or are not waited for any more."""
        ended = [request.stop_reason is not None or request.future.cancelled() for request in self.requests]
        return torch.tensor(ended, device=input_ids.device)

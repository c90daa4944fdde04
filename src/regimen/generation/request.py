"""A prompt on its way through an in-process engine, and its answer so far.

In: a prompt, how to sample, who waits for it. Out: tokens and log-probabilities as they are drawn. Refuses nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from regimen.generation.base import OnToken, Sample, Sampling, StopReason


@dataclass(slots=True, eq=False)
class Request:
    """A prompt that is answered, and its answer so far."""

    prompt: np.ndarray
    sampling: Sampling
    future: asyncio.Future[Sample]
    random: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    length: int = 0  # own tokens in memory
    uses_prefix: bool = False
    stop_reason: StopReason | None = None
    on_token: OnToken | None = None
    num_told: int = 0  # tokens that `on_token` heard of

    def tell(self) -> None:
        """Hand the tokens sampled since the last time to who listens."""
        if self.on_token is None:
            return
        told, self.num_told = self.num_told, min(len(self.ids), len(self.logprobs))  # the engine may be adding one
        for token, logprob in zip(self.ids[told : self.num_told], self.logprobs[told : self.num_told], strict=True):
            self.on_token(token, logprob)

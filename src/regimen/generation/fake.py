"""A scripted generation for tests: answers come from a list or a function, at the cost of nothing.

In: answers as token ids (or `Sample`s, or exceptions to raise). Out: samples through the generation seam.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from regimen.errors import GenerationError
from regimen.generation.base import OnToken, Sample, Sampling

Answer = Sequence[int] | Sample | Exception
Script = Callable[[list[int], Sampling, int], Answer]


class FakeGeneration:
    """Answers from a script: a sequence used up in order, or a function of (prompt ids, sampling, seed).

    An answer longer than `max_new_tokens` is cut and stops by length; every log-probability is `logprob`. `delay` is
    waited before each answer, `token_delay` before each token that somebody listens to.
    """

    def __init__(
        self, script: Script | Iterable[Answer], *, logprob: float = -0.5, delay: float = 0.0, token_delay: float = 0.0
    ) -> None:
        self.function = script if callable(script) else None
        self.answers = iter(()) if callable(script) else iter(script)
        self.logprob = logprob
        self.delay = delay
        self.token_delay = token_delay
        self.version = 0
        self.is_closed = False
        self.requests: list[tuple[list[int], Sampling, int]] = []
        self.updates: list[dict[str, Any]] = []

    async def sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, on_token: OnToken | None = None
    ) -> Sample:
        """The next scripted answer. Raises `GenerationError` when the script is used up or this is closed."""
        if self.is_closed:
            raise GenerationError("the generation is closed")
        self.requests.append((list(prompt_ids), sampling, seed))
        answer = self._answer(list(prompt_ids), sampling, seed)
        await asyncio.sleep(self.delay)
        if isinstance(answer, Exception):
            raise answer
        sample = answer if isinstance(answer, Sample) else self._sample(answer, sampling)
        if on_token is not None:
            for token, logprob in zip(sample.ids, sample.logprobs, strict=True):
                await asyncio.sleep(self.token_delay)
                on_token(token, logprob)
        return sample

    def _sample(self, answer: Sequence[int], sampling: Sampling) -> Sample:
        ids = list(answer)[: sampling.max_new_tokens]
        ended = len(ids) == len(answer) and bool(ids) and (not sampling.stop_ids or ids[-1] in sampling.stop_ids)
        return Sample(
            ids=ids,
            logprobs=[self.logprob] * len(ids),
            weight_version=self.version,
            stop_reason="stop" if ended else "length",
        )

    async def update(self, version: int, named_tensors: Iterable[tuple[str, Any]]) -> None:
        """Record the new weights; later samples carry `version`."""
        self.version = version
        self.updates.append(dict(named_tensors))

    async def release(self) -> None:
        """Hold nothing that could be given back."""

    async def close(self) -> None:
        """Refuse further samples."""
        self.is_closed = True

    def _answer(self, prompt_ids: list[int], sampling: Sampling, seed: int) -> Answer:
        if self.function is not None:
            return self.function(prompt_ids, sampling, seed)
        try:
            return next(self.answers)
        except StopIteration:
            raise GenerationError("the script has no more answers", fix="script one answer per model call") from None

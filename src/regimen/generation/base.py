"""The generation seam: prompt ids in, sampled ids and log-probabilities out, asynchronously.

An implementation batches what is waiting; callers just await `sample`. A sample is a function of the weights, the
prompt, the sampling parameters and the seed, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import msgspec

StopReason = Literal["stop", "length"]
OnToken = Callable[[int, float], None]  # a sampled id and its log-probability


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to sample. `temperature` 0 is greedy; `top_p` 1 and `top_k` None leave the distribution whole."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 256
    stop_ids: tuple[int, ...] = ()


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One answer: `ids` end with the stop token when `stop_reason` is "stop".

    `logprobs` has one natural-log probability per id, of the full distribution after division by the temperature
    (temperature 1 when greedy), before top-p and top-k.
    """

    ids: list[int]
    logprobs: list[float]
    weight_version: int
    stop_reason: StopReason


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of one model call and the log-probabilities of those it sampled."""

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer as a chat message in OpenAI's spelling; `tokens` where its ids are known.

    `message` may count `malformed_calls` beside the usual keys.
    """

    message: dict[str, Any]
    stop_reason: StopReason
    num_input_tokens: int
    num_output_tokens: int
    weight_version: int = 0
    tokens: Tokens | None = None


class ChatModel(Protocol):
    """A source of answers that takes chat messages, wherever it runs."""

    async def chat(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], sampling: Sampling, seed: int
    ) -> Reply:
        """Answer a conversation. Raises `GenerationError`."""
        ...

    async def close(self) -> None:
        """Free what is held."""
        ...


class Generation(Protocol):
    """A source of samples."""

    async def sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, on_token: OnToken | None = None
    ) -> Sample:
        """Sample one answer to `prompt_ids`. Raises `GenerationError`.

        `on_token` is called on the event loop for each token of the answer, in order, before it is returned. A caller
        that is cancelled ends its sample.
        """
        ...

    async def update(self, version: int, named_tensors: Iterable[tuple[str, Any]]) -> None:
        """Take new weights; later samples carry `version`."""
        ...

    async def release(self) -> None:
        """Give back memory that only makes the next samples quicker; they stay the same.

        Called between playing and training. Raises `GenerationError` while samples are under way.
        """
        ...

    async def close(self) -> None:
        """Stop working and free memory."""
        ...

"""A generation with its tokenizer, as a model server uses it: prompts in, samples out, weights swapped in between.

In: chat messages or Responses items, which may carry the token ids of earlier answers. Out: prompt ids that continue
exactly those ids, and replies. Refuses: prompts that leave no room, ids that the vocabulary does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

import msgspec

from regimen.errors import RequestError
from regimen.generation.base import Generation, OnToken, Reply, Sampling, Tokens
from regimen.gym.conversation import Renderer
from regimen.rollouts.messages import chat_tools, input_messages
from regimen.rollouts.turns import TOKEN_FIELDS

Items = list[dict[str, Any]]
Weights = Iterable[tuple[str, Any]]


class TextRenderer(Renderer, Protocol):
    """A renderer that also turns text into ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What is served: a name, and what the model can take. `with_token_ids`: every answer carries its ids."""

    name: str
    max_length: int
    vocabulary_size: int
    sampling: Sampling
    with_token_ids: bool = False


class SampledToken(msgspec.Struct, frozen=True):
    """A token of an answer that is still being made."""

    token: int
    logprob: float
    weight_version: int


class Engine:
    """See the module. `load_weights` reads a folder of new weights by its name, where swapping is allowed."""

    def __init__(
        self,
        generation: Generation,
        renderer: TextRenderer,
        served: Served,
        load_weights: Callable[[str], Weights] | None = None,
    ) -> None:
        self.generation = generation
        self.renderer = renderer
        self.served = served
        self.load_weights = load_weights
        self.weight_version = 0
        self._num_sampling = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()
        self._swap = asyncio.Lock()
        self._is_paused = False

    def prompt_ids(self, items: str | Items, tools: Items | None, instructions: str | None = None) -> list[int]:
        """Ids of a conversation. Behind an answer that carries its ids, those are continued, never rendered again."""
        params = {"input": items, "instructions": instructions}
        messages = input_messages(params)
        _check_text(messages)
        flat = chat_tools({"tools": tools})
        held = _last_with_ids(items)
        if held is None:
            return self._checked(self.renderer.prompt_ids(messages, flat))
        seen = len(input_messages({**params, "input": items[: held + 1]}))
        item = cast("Items", items)[held]
        if messages[seen - 1]["role"] != "assistant" or seen == len(messages):
            raise RequestError("nothing follows the answer that carries token ids", expected="a message to answer")
        following = self.renderer.continuation_ids(messages[seen - 1], messages[seen:], flat)
        return self._checked([*item[TOKEN_FIELDS[0]], *item[TOKEN_FIELDS[1]], *following])

    def _checked(self, ids: list[int]) -> list[int]:
        top = self.served.vocabulary_size
        if not ids or min(ids) < 0 or max(ids) >= top:
            raise RequestError("the prompt holds no ids or such as the model does not have", expected=f"0 to {top - 1}")
        return ids

    def room(self, prompt_ids: Sequence[int]) -> int:
        """Tokens left for an answer. Raises `RequestError` when there are none."""
        room = self.served.max_length - len(prompt_ids)
        if room <= 0:
            raise RequestError(
                f"a prompt of {len(prompt_ids)} tokens leaves no room for an answer",
                code="context_length_exceeded",
                expected=f"less than {self.served.max_length} tokens",
            )
        return room

    async def replies(self, prompt_ids: list[int], sampling: Sampling, seed: int, number: int = 1) -> list[Reply]:
        """Answers to one prompt, all from the same weights."""
        self._check_stops(sampling)
        async with self._sampling():
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self.reply(prompt_ids, sampling, one)) for one in _seeds(seed, number)]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def stream(
        self, prompt_ids: list[int], sampling: Sampling, seed: int, number: int = 1
    ) -> AsyncGenerator[tuple[int, SampledToken | Reply]]:
        """The same answers while they are made: each one's tokens, then the whole reply, all with its number.

        Close the generator to cancel what is still being sampled.
        """
        self._check_stops(sampling)
        made: asyncio.Queue[tuple[int, SampledToken | Reply] | Exception] = asyncio.Queue()
        work = asyncio.create_task(self._make(made, prompt_ids, sampling, _seeds(seed, number)))
        left = number
        try:
            while left:
                item = await made.get()
                if isinstance(item, Exception):
                    raise item
                left -= isinstance(item[1], Reply)
                yield item
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _make(
        self,
        made: asyncio.Queue[tuple[int, SampledToken | Reply] | Exception],
        prompt_ids: list[int],
        sampling: Sampling,
        seeds: list[int],
    ) -> None:
        """Sample into a queue: who reads it slowly holds nothing up."""

        async def one(index: int, seed: int) -> None:
            def take(token: int, logprob: float) -> None:
                made.put_nowait((index, SampledToken(token, logprob, self.weight_version)))

            made.put_nowait((index, await self.reply(prompt_ids, sampling, seed, take)))

        try:
            async with self._sampling(), asyncio.TaskGroup() as group:
                for index, seed in enumerate(seeds):
                    group.create_task(one(index, seed))
        except ExceptionGroup as errors:  # raised where the stream is read
            made.put_nowait(errors.exceptions[0])

    def _check_stops(self, sampling: Sampling) -> None:
        top = self.served.vocabulary_size
        if any(stop >= top for stop in sampling.stop_ids):
            raise RequestError("a stop token is none of the model's", where="stop_token_ids", expected=f"below {top}")

    async def reply(
        self, prompt_ids: list[int], sampling: Sampling, seed: int, on_token: OnToken | None = None
    ) -> Reply:
        """One answer; `on_token` hears of each token as it is sampled."""
        heard = {} if on_token is None else {"on_token": on_token}
        sample = await self.generation.sample(prompt_ids, sampling, seed, **heard)
        return Reply(
            message=self.renderer.parse_assistant(sample.ids),
            stop_reason=sample.stop_reason,
            num_input_tokens=len(prompt_ids),
            num_output_tokens=len(sample.ids),
            weight_version=sample.weight_version,
            tokens=Tokens(prompt_ids=prompt_ids, ids=sample.ids, logprobs=sample.logprobs),
        )

    async def update(self, version: int, named_tensors: Weights) -> None:
        """Take new weights once the answers under way are finished; later ones wait for them."""
        async with self._swap:
            self._open.clear()
            try:
                await self._idle.wait()
                await self.generation.update(version, named_tensors)
                self.weight_version = version
            finally:
                if not self._is_paused:
                    self._open.set()

    async def pause(self) -> None:
        """Let the answers under way finish, and hold back later requests until `resume`."""
        self._is_paused = True
        self._open.clear()
        await self._idle.wait()

    def resume(self) -> None:
        """Answer again."""
        self._is_paused = False
        self._open.set()

    @asynccontextmanager
    async def _sampling(self) -> AsyncGenerator[None]:
        while not self._open.is_set():
            await self._open.wait()
        self._num_sampling += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_sampling -= 1
            if not self._num_sampling:
                self._idle.set()


def _seeds(seed: int, number: int) -> list[int]:
    return [(seed + index) & (2**62 - 1) for index in range(number)]


def _check_text(messages: Items) -> None:
    if not messages:
        raise RequestError("there is no message")
    if any(not isinstance(message.get("content"), str) for message in messages):
        raise RequestError("a message holds an image", expected="text", code="unsupported_content")


def _last_with_ids(items: str | Items) -> int | None:
    """Index of the last item that carries its ids. Raises `RequestError` for fields that are no ids."""
    if isinstance(items, str):
        return None
    for index in reversed(range(len(items))):
        item = items[index]
        if item.get(TOKEN_FIELDS[1]) is None:
            continue
        for field in TOKEN_FIELDS[:2]:
            ids = item.get(field)
            if not isinstance(ids, list) or not all(type(token) is int for token in cast("list[Any]", ids)):
                raise RequestError("is no list of token ids", where=f"[{index}].{field}")
        return index
    return None

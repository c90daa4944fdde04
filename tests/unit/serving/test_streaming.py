"""Streams are what the whole answer is, sent while it is made, and end with their client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest

from regimen.errors import GenerationError
from regimen.generation.fake import FakeGeneration
from regimen.serving.model import model_app
from regimen.serving.streaming import AnswerText
from regimen.tokens.parsing import parse_assistant_text

HELLO = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'


def letters(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def streamed(text: str) -> tuple[AnswerText, list[tuple[str, str]], dict[str, Any]]:
    """The text fed letter by letter, what came out at each, and the message at the end."""
    answer = AnswerText(letters, stop_ids=[1])
    parts = [answer.feed(ord(letter)) for letter in text]
    assert answer.feed(1) == ("", "")
    message, *rest = answer.finish(parse_assistant_text(text))
    return answer, [*parts, (rest[0], rest[1])], message


@pytest.mark.parametrize(
    "text",
    [
        "plain words, one after the other",
        "  spaces around \n\n",
        "a < b and <tool or <tool_call",
        "<think>hm, <b></think>  So it is.",
        "<think>hm</think>" + CALL,
        "I add. " + CALL + " and then say more",
        "bad " + '<tool_call>{"name": 3}</tool_call>' + " call",
        "<tool_call>never closed",
        "<thin air",
        "",
    ],
)
def test_the_pieces_of_a_stream_are_the_whole_message(text: str) -> None:
    _, parts, message = streamed(text)
    assert message == parse_assistant_text(text)
    assert "".join(part[0] for part in parts) == message.get("reasoning_content", "")
    assert "".join(part[1] for part in parts) == message["content"]


def test_words_come_as_soon_as_they_are_certain() -> None:
    _, parts, _ = streamed("<think>ab</think>c d<tool")
    assert [place for place, part in enumerate(parts) if part[0]] == [7, 8]
    # "c" at its place; " d" once the "d" shows that the space is not the end; "<tool" when nothing follows.
    assert [(place, part[1]) for place, part in enumerate(parts) if part[1]] == [(17, "c"), (19, " d"), (25, "<tool")]


def test_a_thought_that_is_cut_off_stays_a_thought() -> None:
    answer, _, message = streamed("<think>on and on")
    assert (answer.reasoning, answer.content) == ("on and on", "")
    assert (message["reasoning_content"], message["content"]) == ("on and on", "")


def test_a_character_of_several_tokens_comes_whole() -> None:
    answer = AnswerText(lambda ids: bytes(ids).decode("utf-8", "replace"), stop_ids=[])
    assert [answer.feed(byte)[1] for byte in "né!".encode()] == ["n", "", "é", "!"]


@pytest.fixture
async def official(kit: Any) -> AsyncIterator[Any]:
    """A generation -> OpenAI's client of a model server over it, on a real socket."""
    async with AsyncExitStack() as stack:

        def make(generation: Any, **changes: Any) -> openai.AsyncOpenAI:
            url = stack.enter_context(kit.running(model_app(kit.engine_of(generation, **changes))))
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            stack.push_async_callback(client.close)
            return client

        yield make


def slow(text: str, token_delay: float = 0.05) -> FakeGeneration:
    return FakeGeneration(lambda *_: [*map(ord, text), 1], token_delay=token_delay)


async def test_words_arrive_while_the_answer_is_made(official: Any) -> None:
    client = official(slow("0123456789", 0.05))
    began = time.monotonic()
    stream = await client.chat.completions.create(model="letters", messages=HELLO, stream=True)
    arrived = [time.monotonic() - began async for part in stream if part.choices[0].delta.content]
    assert len(arrived) == 10
    assert arrived[0] < arrived[-1] - 0.3  # nine delays of 0.05 s lie between them


async def test_a_stream_has_log_probabilities_ids_and_versions(official: Any) -> None:
    client = official(slow(" hi", 0.0))
    more = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    stream = await client.chat.completions.create(
        model="letters", messages=HELLO, stream=True, logprobs=True, extra_body=more
    )
    parts = [part async for part in stream]
    choices = [part.choices[0] for part in parts]
    assert [token for choice in choices for token in choice.token_ids] == [32, 104, 105, 1]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [(entry.token, entry.logprob) for entry in entries] == [(f"token_id:{i}", -0.5) for i in (32, 104, 105, 1)]
    assert parts[0].prompt_token_ids == [ord(letter) for letter in "user:hi|assistant:"]
    assert {part.weight_version for part in parts} == {0}


async def test_several_answers_are_streamed_side_by_side(official: Any) -> None:
    client = official(FakeGeneration([[97, 98, 1], [99, 1]]))
    stream = await client.chat.completions.create(
        model="letters", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    )
    said = {0: "", 1: ""}
    usage = None
    async for part in stream:
        usage = part.usage
        for choice in part.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == {0: "ab", 1: "c"}
    assert usage.completion_tokens == 5


async def test_a_client_that_goes_away_ends_the_sample(official: Any) -> None:
    ended: list[int] = []

    class Endless:
        async def sample(self, _prompt: Any, _sampling: Any, _seed: int, on_token: Any = None) -> Any:
            try:
                while True:
                    on_token(97, -1.0)
                    await asyncio.sleep(0.01)
            finally:
                ended.append(1)

        async def close(self) -> None:
            pass

    client = official(Endless())
    stream = await client.chat.completions.create(model="letters", messages=HELLO, stream=True)
    async for part in stream:
        if part.choices[0].delta.content:
            break
    assert not ended
    await stream.close()
    deadline = time.monotonic() + 5
    while not ended and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert ended == [1]


class Breaks:
    """Two tokens, then a failure; or a failure at once."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    async def sample(self, _prompt: Any, _sampling: Any, _seed: int, on_token: Any = None) -> Any:
        for _ in range(self.num_tokens):
            on_token(97, -1.0)
        await asyncio.sleep(0)
        raise GenerationError("out of memory")

    async def close(self) -> None:
        pass


async def test_a_failure_in_the_midst_is_the_last_event(official: Any) -> None:
    client = official(Breaks(2))
    stream = await client.chat.completions.create(model="letters", messages=HELLO, stream=True)
    said: list[str] = []

    async def read() -> None:
        async for part in stream:
            said.append(part.choices[0].delta.content or "")

    with pytest.raises(openai.APIError, match="out of memory"):
        await read()
    assert "".join(said) == "aa"
    events = [one async for one in await client.responses.create(model="letters", input="hi", stream=True)]
    assert (events[-1].type, events[-1].message) == ("error", "out of memory")
    assert [one.sequence_number for one in events] == list(range(len(events)))


async def test_a_failure_before_the_first_word_has_a_status(official: Any) -> None:
    client = official(Breaks(0))
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        await client.chat.completions.create(model="letters", messages=HELLO, stream=True)


async def test_responses_stream_reasoning_words_and_calls(official: Any) -> None:
    client = official(slow("<think>hm</think>I add. " + CALL, 0.0))
    tool: Any = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}
    stream = await client.responses.create(
        model="letters", input="hi", tools=[tool], stream=True, max_output_tokens=200
    )
    events = [one async for one in stream]
    kinds = [one.type for one in events]
    assert [one.output_index for one in events if one.type == "response.output_item.added"] == [0, 1, 2]
    assert kinds.count("response.output_item.done") == 3
    assert "".join(e.delta for e in events if e.type == "response.reasoning_summary_text.delta") == "hm"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "I add."
    final = events[-1].response
    done = [one.item for one in events if one.type == "response.output_item.done"]
    assert [item.id for item in final.output] == [item.id for item in done]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.usage.output_tokens == len("<think>hm</think>I add. " + CALL) + 1


async def test_a_stream_is_finished_with_the_weights_it_began_with(kit: Any) -> None:
    generation = slow("abcd", 0.05)
    engine = kit.engine_of(generation, load_weights=lambda _: [("w", [1.0])])
    async with kit.client_of(model_app(engine)) as client:
        body = {"messages": HELLO, "stream": True}
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asyncio.sleep(0.06)
        await engine.update(3, [("w", [1.0])])
        first = await streaming
        second = await engine.replies([97], engine.served.sampling, 0)
    lines = [line for line in first.text.split("\n\n") if line.startswith("data: {")]
    assert {json.loads(line[6:])["weight_version"] for line in lines} == {0}
    assert first.headers["regimen-weight-version"] == "0"
    assert second[0].weight_version == 3

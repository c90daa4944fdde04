from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from regimen.errors import GenerationError
from regimen.generation.base import Sample
from regimen.generation.fake import FakeGeneration
from regimen.serving.model import model_app

HELLO = [{"role": "user", "content": "hi"}]
PROMPT = [ord(letter) for letter in "user:hi|assistant:"]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
FLAT_TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def serve(kit: Any) -> Any:
    """Answers -> a client of a model server that gives them."""

    def make(*texts: str, **changes: Any) -> Any:
        return kit.client_of(model_app(kit.engine_of(kit.says(*texts), **changes)))

    return make


async def chat(client: Any, **body: Any) -> Any:
    return await client.post("/v1/chat/completions", json={"messages": HELLO, **body})


async def test_a_chat_completion(serve: Any) -> None:
    async with serve("hey") as client:
        response = await chat(client, model="letters", logprobs=True, return_tokens_as_token_ids=True)
    body = response.json()
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hey", "stop")
    assert [(e["token"], e["logprob"]) for e in choice["logprobs"]["content"]] == [
        ("token_id:104", -0.5),
        ("token_id:101", -0.5),
        ("token_id:121", -0.5),
        ("token_id:1", -0.5),
    ]
    assert body["usage"] == {"prompt_tokens": 18, "completion_tokens": 4, "total_tokens": 22}
    assert (body["weight_version"], body["system_fingerprint"]) == (0, "weights-0")
    assert response.headers["regimen-weight-version"] == "0"
    assert "prompt_token_ids" not in body


async def test_token_ids_on_request_or_always(serve: Any) -> None:
    async with serve("a", "b", with_token_ids=True) as client:
        body = (await chat(client, return_token_ids=True)).json()
        assert body["prompt_token_ids"] == PROMPT
        assert body["choices"][0]["token_ids"] == [97, 1]
        message = body["choices"][0]["message"]
        assert (message["prompt_token_ids"], message["generation_token_ids"]) == (PROMPT, [97, 1])
        assert message["generation_log_probs"] == [-0.5, -0.5]
        item = (await client.post("/v1/responses", json={"input": "hi"})).json()["output"][-1]
        assert (item["prompt_token_ids"], item["generation_token_ids"]) == (PROMPT, [98, 1])


async def test_calls_are_parsed_and_reasoning_kept(serve: Any, kit: Any) -> None:
    text = "<think>hm</think>I add." + kit.call_text("add", a=1) + kit.call_text("add", a=2)
    async with serve(text, text) as client:
        choice = (await chat(client, tools=[TOOL], max_tokens=200)).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["reasoning_content"] == "hm"
        calls = choice["message"]["tool_calls"]
        assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"a": 1}, {"a": 2}]
        body = {"input": "hi", "tools": [FLAT_TOOL], "max_output_tokens": 200}
        output = (await client.post("/v1/responses", json=body)).json()["output"]
        assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
        assert len({item["call_id"] for item in output[2:]}) == 2


async def test_history_with_ids_is_continued_not_rendered(kit: Any) -> None:
    generation = kit.says("first", "second", "third")
    async with kit.client_of(model_app(kit.engine_of(generation, with_token_ids=True))) as client:
        first = (await chat(client)).json()["choices"][0]["message"]
        first["content"] = "altered on the way"
        await chat(client, messages=[*HELLO, first, {"role": "user", "content": "more"}])
        held = [*PROMPT, *map(ord, "first"), 1]
        assert generation.requests[1][0] == [*held, *map(ord, "|user:more|assistant:")]
        items = [{"role": "user", "content": "hi"}, {"type": "message", **first, "content": "x"}]
        tokenized = await client.post("/tokenize", json={"messages": [*items, {"role": "user", "content": "more"}]})
        assert tokenized.json()["tokens"] == generation.requests[1][0]
        assert (await chat(client, messages=[*HELLO, first])).status_code == 400


@pytest.mark.parametrize("ids", ["text", [1.5], [True], [-1], [1000], [2**40]])
async def test_ids_that_the_model_does_not_have_are_refused(serve: Any, ids: Any) -> None:
    held = {"role": "assistant", "content": "x", "prompt_token_ids": [5], "generation_token_ids": ids}
    async with serve("a") as client:
        response = await chat(client, messages=[*HELLO, held, *HELLO])
        assert response.status_code == 400
        assert (await chat(client, stop_token_ids=[1000])).status_code == 400


async def test_sampling_is_what_was_asked(kit: Any) -> None:
    generation = kit.says("a", "b", "c")
    async with kit.client_of(model_app(kit.engine_of(generation))) as client:
        await chat(client, temperature=0.25, top_p=0.5, top_k=7, max_tokens=9, seed=5, stop_token_ids=[7])
        await chat(client, temperature=None, top_k=-1, seed=-1)
        await client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 100_000})
    (_, first, seed), (_, second, negative), (_, third, _) = generation.requests
    assert (first.temperature, first.top_p, first.top_k, first.max_new_tokens) == (0.25, 0.5, 7, 9)
    assert (first.stop_ids, seed) == ((1, 7), 5)
    assert (second.temperature, second.top_k, second.max_new_tokens, negative) == (1.0, None, 50, 2**62 - 1)
    assert third.max_new_tokens == 500 - len(PROMPT)


async def test_n_answers_come_from_n_seeds(kit: Any) -> None:
    generation = kit.says("a", "b", "c")
    async with kit.client_of(model_app(kit.engine_of(generation))) as client:
        body = (await chat(client, n=3, seed=10)).json()
    assert sorted(seed for _, _, seed in generation.requests) == [10, 11, 12]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "gpt-4"}, 404, "letters"),
        ({"stop": ["x"]}, 400, "stop"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"top_logprobs": 5}, 400, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format"),
        ({"frequency_penalty": 1}, 400, "frequency_penalty"),
        ({"temperature": "hot"}, 400, "$.temperature"),
        ({"temperature": -1}, 400, "$.temperature"),
        ({"temperature": 1e-9}, 400, "temperature"),
        ({"top_p": 0}, 400, "$.top_p"),
        ({"n": 65}, 400, "$.n"),
        ({"max_tokens": 0}, 400, "$.max_tokens"),
        ({"messages": []}, 400, "messages"),
        ({"messages": ["x"]}, 400, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "king"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]}, 400, "image"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, 400, "no room"),
        ({"tools": [{"type": "function"}]}, 400, "name"),
    ],
    ids=str,
)
async def test_what_cannot_be_honoured_is_refused_by_name(serve: Any, changes: Any, status: int, says: str) -> None:
    async with serve("a") as client:
        response = await chat(client, **changes)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]


async def test_a_failing_engine_is_an_error_that_is_counted(kit: Any) -> None:
    generation = FakeGeneration([GenerationError("the engine failed")])
    async with kit.client_of(model_app(kit.engine_of(generation))) as client:
        assert (await chat(client)).status_code == 500
        text = (await client.get("/metrics")).text
    assert 'regimen_requests_total{route="/v1/chat/completions",status="500"} 1\n' in text


async def test_metrics_count(serve: Any) -> None:
    async with serve("abc", "d") as client:
        for _ in range(2):
            await chat(client)
        await client.post("/tokenize", json={"prompt": "xyz"})
        response = await client.get("/metrics")
    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'regimen_requests_total{route="/v1/chat/completions",status="200"} 2' in lines
    assert f"regimen_prompt_tokens_total {2 * len(PROMPT)}" in lines
    assert "regimen_generated_tokens_total 6" in lines
    assert "regimen_requests_running 0" in lines
    assert 'regimen_request_seconds_bucket{le="+Inf"} 3' in lines


async def test_models_and_tokenize(serve: Any) -> None:
    async with serve() as client:
        model = (await client.get("/v1/models")).json()["data"][0]
        assert (model["id"], model["max_model_len"], model["weight_version"]) == ("letters", 500, 0)
        assert (await client.get("/v1/models/letters")).json() == model
        assert (await client.get("/v1/models/other/name")).status_code == 404
        found = (await client.post("/tokenize", json={"prompt": "ab"})).json()
        assert found == {"count": 2, "max_model_len": 500, "tokens": [97, 98]}
        assert (await client.post("/tokenize", json={})).status_code == 400


async def test_new_weights_wait_for_answers_under_way(kit: Any) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    class Held(FakeGeneration):
        async def sample(self, prompt_ids: Any, sampling: Any, seed: int) -> Sample:
            begun.set()
            await release.wait()
            return Sample(ids=[97, 1], logprobs=[0.0, 0.0], weight_version=self.version, stop_reason="stop")

    generation = Held([])
    read: list[str] = []

    def load(folder: str) -> Any:
        read.append(folder)
        return [("w", 1)]

    engine = kit.engine_of(generation, load_weights=load)
    async with kit.client_of(model_app(engine)) as client:
        old = asyncio.create_task(chat(client))
        await begun.wait()
        swap = asyncio.create_task(client.post("/weights", json={"folder": "step_3", "version": 3}))
        await asyncio.sleep(0.02)
        new = asyncio.create_task(chat(client))
        await asyncio.sleep(0.02)
        assert (generation.updates, swap.done(), new.done()) == ([], False, False)
        release.set()
        assert [(await task).json()["weight_version"] for task in (old, swap, new)] == [0, 3, 3]
        assert (await new).headers["regimen-weight-version"] == "3"
    assert (read, generation.updates) == (["step_3"], [{"w": 1}])


@pytest.mark.parametrize("folder", ["", "..", "../x", "/etc", "a/b", ".hidden", "a\x00", "x" * 200])
async def test_weights_come_by_a_plain_name_only(kit: Any, folder: str) -> None:
    def load(_name: str) -> Any:
        raise AssertionError("nothing is to be read")

    async with kit.client_of(model_app(kit.engine_of(kit.says(), load_weights=load))) as client:
        assert (await client.post("/weights", json={"folder": folder, "version": 1})).status_code == 400


async def test_without_a_folder_there_is_no_swapping(serve: Any) -> None:
    async with serve() as client:
        assert (await client.post("/weights", json={"folder": "a", "version": 1})).status_code == 404


@pytest.fixture
def official(kit: Any) -> Any:
    """Answers -> OpenAI's own client of a model server that gives them."""

    def make(*texts: str, **changes: Any) -> openai.AsyncOpenAI:
        http = kit.client_of(model_app(kit.engine_of(kit.says(*texts), **changes)))
        return openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http, max_retries=0)

    return make


async def test_openai_chat(official: Any, kit: Any) -> None:
    client = official("hey", kit.call_text("add", a=1))
    first = await client.chat.completions.create(model="letters", messages=HELLO, logprobs=True)
    assert first.choices[0].message.content == "hey"
    assert [entry.token for entry in first.choices[0].logprobs.content] == ["h", "e", "y", "\x01"]
    second = await client.chat.completions.create(model="letters", messages=HELLO, tools=[TOOL], max_tokens=99)
    assert second.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        await client.chat.completions.create(model="other", messages=HELLO)
    assert [model.id async for model in await client.models.list()] == ["letters"]


async def test_openai_chat_streams(official: Any, kit: Any) -> None:
    long = "a word and another, more than a piece holds"
    client = official(long, kit.call_text("add", a=1))
    settings = {"model": "letters", "messages": HELLO, "stream": True}
    stream = await client.chat.completions.create(**settings, stream_options={"include_usage": True})
    parts = [part async for part in stream]
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == long
    assert len(parts) > 4
    assert parts[-2].choices[0].finish_reason == "stop"
    assert parts[-1].usage.completion_tokens == len(long) + 1
    stream = await client.chat.completions.create(**settings, tools=[TOOL], max_tokens=99)
    calls = [call for part in [p async for p in stream] for call in part.choices[0].delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "add")]


async def test_openai_responses(official: Any, kit: Any) -> None:
    client = official("hey", "cut short", kit.call_text("add", a=1))
    first = await client.responses.create(model="letters", input="hi", instructions="be kind")
    assert (first.output_text, first.status, first.usage.total_tokens) == (
        "hey",
        "completed",
        len("system:be kind|user:hi|assistant:") + 4,
    )
    cut = await client.responses.create(model="letters", input="hi", max_output_tokens=3)
    assert (cut.output_text, cut.status, cut.incomplete_details.reason) == ("cut", "incomplete", "max_output_tokens")
    called = await client.responses.create(model="letters", input=HELLO, tools=[FLAT_TOOL], max_output_tokens=99)
    assert (called.output[0].type, called.output[0].name) == ("function_call", "add")


async def test_openai_responses_stream(official: Any, kit: Any) -> None:
    text = "say this, then " + kit.call_text("add", a=1)
    client = official(text, text)
    settings = {"model": "letters", "input": "hi", "tools": [FLAT_TOOL], "max_output_tokens": 200}
    whole = await client.responses.create(**settings)
    stream = await client.responses.create(**settings, stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text == "say this, then"
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert arguments == '{"a": 1}'
    assert events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == ["message", "function_call"]

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from regimen.endpoint import Endpoint
from regimen.errors import GenerationError
from regimen.generation.base import Sampling, Tokens
from regimen.generation.remote import RemoteChat

HELLO = [{"role": "user", "content": "hi"}]
SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=7)


def remote(answer: Any, **settings: Any) -> tuple[RemoteChat, list[Any]]:
    """A model whose endpoint always gives this answer; and the bodies it was sent."""
    asked: list[Any] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    endpoint = Endpoint("http://box/v1", max_tries=1, transport=httpx.MockTransport(handle))
    return RemoteChat(endpoint, "m", **settings), asked


def completion(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **more}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


async def test_what_is_asked_and_what_comes_back() -> None:
    model, asked = remote({**completion({"content": "hey", "reasoning_content": "hm"}), "weight_version": 4})
    reply = await model.chat(HELLO, [], SAMPLING, 2**40 + 3)
    assert asked == [
        {
            "model": "m",
            "messages": HELLO,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 7,
            "seed": 3,
        }
    ]
    assert reply.message == {"role": "assistant", "content": "hey", "malformed_calls": 0, "reasoning_content": "hm"}
    assert (reply.stop_reason, reply.num_input_tokens, reply.num_output_tokens) == ("stop", 5, 2)
    assert (reply.weight_version, reply.tokens) == (4, None)


async def test_calls_and_cut_answers() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    model, asked = remote(completion({"content": None, "tool_calls": [call]}, "length"))
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    history = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
    reply = await model.chat(history, tools, SAMPLING, 0)
    assert (reply.message["tool_calls"], reply.stop_reason) == ([call], "length")
    assert asked[0]["tools"] == tools
    assert asked[0]["messages"][1]["content"] is None


@pytest.mark.parametrize("spelling", ["vllm", "nemo gym"])
async def test_token_ids_in_both_spellings(spelling: str) -> None:
    if spelling == "vllm":
        logprobs = {"content": [{"logprob": -0.1}, {"logprob": -0.2}]}
        answer = completion({"content": "x"}, token_ids=[7, 8], logprobs=logprobs)
        answer["prompt_token_ids"] = [1, 2]
    else:
        ids = {"prompt_token_ids": [1, 2], "generation_token_ids": [7, 8], "generation_log_probs": [-0.1, -0.2]}
        answer = completion({"content": "x", **ids})
    model, asked = remote(answer, with_token_ids=True)
    reply = await model.chat(HELLO, [], SAMPLING, 0)
    assert reply.tokens == Tokens(prompt_ids=[1, 2], ids=[7, 8], logprobs=[-0.1, -0.2])
    assert (asked[0]["return_token_ids"], asked[0]["logprobs"]) == (True, True)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": "none"},
        {"choices": [{"message": None}]},
        completion({"content": [1]}),
        completion({"tool_calls": [{"function": {"name": "a"}}]}),
        completion({"tool_calls": [{"function": {"name": "a", "arguments": {}}}]}),
        completion({"content": "x"}, "content_filter"),
        httpx.Response(500, text="down"),
        httpx.Response(200, text="not JSON"),
    ],
    ids=str,
)
async def test_what_is_no_answer_is_a_failure(answer: Any) -> None:
    model, _ = remote(answer)
    with pytest.raises(GenerationError, match="box"):
        await model.chat(HELLO, [], SAMPLING, 0)


async def test_ids_that_are_asked_for_and_missing_are_a_failure() -> None:
    model, _ = remote(completion({"content": "x"}, token_ids=[7, 8]), with_token_ids=True)
    with pytest.raises(GenerationError, match="no token ids"):
        await model.chat(HELLO, [], SAMPLING, 0)

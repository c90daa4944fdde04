"""Replies in the shape of OpenAI's Responses API, whole or as a stream of events.

In: a reply. Out: a `response` object, the same items that a rollout row holds; or the events that build it up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from regimen.generation.base import Reply, Sampling
from regimen.gym.protocol import assistant_items, response_object
from regimen.serving.chat import Decode, pieces, token_logprobs
from regimen.serving.wire import ResponsesRequest

Object = dict[str, Any]
LOGPROBS = "message.output_text.logprobs"


def response_of(
    identity: str,
    request: ResponsesRequest,
    model: str,
    reply: Reply,
    sampling: Sampling,
    decode: Decode,
    with_ids: bool,
) -> Object:
    """The whole answer."""
    tokens = reply.tokens
    items = assistant_items(reply if with_ids else msgspec.structs.replace(reply, tokens=None), identity)
    if tokens is not None and LOGPROBS in (request.include or ()):
        for item in items:
            if item["type"] == "message":
                item["content"][0]["logprobs"] = token_logprobs(tokens, False, decode)
    asked = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_new_tokens,
        "tools": request.tools,
        "tool_choice": request.tool_choice or "auto",
        "parallel_tool_calls": request.parallel_tool_calls is not False,
    }
    body = response_object(
        response_id=f"resp_{identity}",
        created_at=time.time(),
        model=model,
        params=asked,
        output=items,
        num_input_tokens=reply.num_input_tokens,
        num_output_tokens=reply.num_output_tokens,
        incomplete="max_output_tokens" if reply.stop_reason == "length" else None,
    )
    body["usage"] |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    version = reply.weight_version
    return {
        **body,
        "instructions": request.instructions,
        "metadata": request.metadata or {},
        "weight_version": version,
    }


def events(response: Object) -> Iterator[Object]:
    """The events of a stream, numbered."""
    for number, event in enumerate(_events(response)):
        yield {**event, "sequence_number": number}


def _events(response: Object) -> Iterator[Object]:
    begun: Object = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(response["output"]):
        yield from _item_events(index, item)
    yield {"type": f"response.{response['status']}", "response": response}


def _item_events(index: int, item: Object) -> Iterator[Object]:
    place = {"item_id": item["id"], "output_index": index}
    empty: dict[str, Object] = {"message": {"content": []}, "function_call": {"arguments": ""}, "reasoning": {}}
    started = {**item, "status": "in_progress", **empty[item["type"]]}
    yield {"type": "response.output_item.added", "output_index": index, "item": started}
    if item["type"] == "message":
        part = item["content"][0]
        inside = {**place, "content_index": 0}
        blank: Object = {**part, "text": "", "logprobs": []}
        yield {"type": "response.content_part.added", **inside, "part": blank}
        for piece in pieces(part["text"]):
            yield {"type": "response.output_text.delta", **inside, "delta": piece, "logprobs": []}
        done = {"text": part["text"], "logprobs": part.get("logprobs", [])}
        yield {"type": "response.output_text.done", **inside, **done}
        yield {"type": "response.content_part.done", **inside, "part": part}
    if item["type"] == "function_call":
        for piece in pieces(item["arguments"]):
            yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
        finished = {"arguments": item["arguments"], "name": item["name"]}
        yield {"type": "response.function_call_arguments.done", **place, **finished}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}

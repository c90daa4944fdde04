"""Replies in the shape of OpenAI's Responses API, whole or as a stream of events.

In: a reply, or tokens as they are sampled. Out: a `response` object, the same items that a rollout row holds; or the
events that build it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from regimen.generation.base import Reply, Sampling
from regimen.gym.protocol import assistant_items, response_object
from regimen.serving.chat import Decode, token_logprobs
from regimen.serving.engine import SampledToken
from regimen.serving.streaming import AnswerText
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
                item["content"][0]["logprobs"] = token_logprobs(tokens.ids, tokens.logprobs, False, decode)
    body = _response(identity, request, model, sampling, items, reply)
    body["usage"] |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return body


def begun(identity: str, request: ResponsesRequest, model: str, sampling: Sampling, weight_version: int) -> Object:
    """The response before anything was sampled."""
    nothing = Reply(message={}, stop_reason="stop", num_input_tokens=0, num_output_tokens=0)
    body = _response(identity, request, model, sampling, [], nothing)
    return {**body, "status": "in_progress", "usage": None, "weight_version": weight_version}


def _response(
    identity: str, request: ResponsesRequest, model: str, sampling: Sampling, items: list[Object], reply: Reply
) -> Object:
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
    own = {"instructions": request.instructions, "metadata": request.metadata or {}}
    return {**body, **own, "weight_version": reply.weight_version}


class ResponseStream:
    """The events of one stream. `whole` makes the response of a reply, its items named after `identity`."""

    def __init__(
        self, identity: str, begun: Object, decode: Decode, stop_ids: Sequence[int], whole: Callable[[Reply], Object]
    ) -> None:
        self.identity = identity
        self.whole = whole
        self._begun = begun
        self._text = AnswerText(decode, stop_ids)
        self._places: dict[str, Object] = {}  # of the items that were opened, by their type
        self._closed: set[str] = set()
        self._number = 0

    def take(self, index: int, item: SampledToken | Reply) -> list[Object]:  # noqa: ARG002 - there is one answer
        """The events that an item of `Engine.stream` gives, numbered."""
        events = [] if self._number else self._begin()
        more = self._deltas(*self._text.feed(item.token)) if isinstance(item, SampledToken) else self._finish(item)
        return [self._numbered(one) for one in (*events, *more)]

    def end(self) -> list[Object]:
        """Nothing follows the whole response."""
        return []

    def error(self, problem: Object) -> Object:
        """The event of a failure in the midst of the stream."""
        return self._numbered({"type": "error", "message": problem["message"], "code": problem["code"], "param": None})

    def _numbered(self, one: Object) -> Object:
        self._number += 1
        return {**one, "sequence_number": self._number - 1}

    def _begin(self) -> list[Object]:
        kinds = ("response.created", "response.in_progress")
        return [{"type": kind, "response": self._begun} for kind in kinds]

    def _finish(self, reply: Reply) -> list[Object]:
        message, reasoning, content = self._text.finish(reply.message)
        events = self._deltas(reasoning, content)
        response = self.whole(msgspec.structs.replace(reply, message=message))
        for index, item in enumerate(response["output"]):
            if item["type"] == "function_call":
                events += _call_events(index, item)
            else:
                events += self._opened(item["type"])
                events += self._close(item)
        return [*events, {"type": f"response.{response['status']}", "response": response}]

    def _deltas(self, reasoning: str, content: str) -> list[Object]:
        events: list[Object] = []
        if reasoning:
            events += self._opened("reasoning")
            kind = "response.reasoning_summary_text.delta"
            events.append({"type": kind, **self._places["reasoning"], "summary_index": 0, "delta": reasoning})
        if content:
            if "reasoning" in self._places:
                events += self._close(_reasoning_item(self.identity, self._text.reasoning))
            events += self._opened("message")
            place = self._places["message"]
            delta: Object = {"content_index": 0, "delta": content, "logprobs": []}
            events.append({"type": "response.output_text.delta", **place, **delta})
        return events

    def _opened(self, kind: str) -> list[Object]:
        """The events that open the reasoning or the message, once."""
        if kind in self._places:
            return []
        is_message = kind == "message"
        identity = f"{'msg' if is_message else 'rs'}_{self.identity}"
        place = self._places[kind] = {"item_id": identity, "output_index": len(self._places)}
        item: Object = {"id": identity, "type": kind, "status": "in_progress"}
        item |= {"role": "assistant", "content": []} if is_message else {"summary": []}
        part: Object = {"type": "output_text", "text": "", "annotations": []} if is_message else _summary("")
        added = "response.content_part.added" if is_message else "response.reasoning_summary_part.added"
        inside = {"content_index" if is_message else "summary_index": 0}
        return [
            {"type": "response.output_item.added", "output_index": place["output_index"], "item": item},
            {"type": added, **place, **inside, "part": part},
        ]

    def _close(self, item: Object) -> list[Object]:
        kind = item["type"]
        if kind in self._closed:
            return []
        self._closed.add(kind)
        place = self._places[kind]
        if kind == "message":
            part = item["content"][0]
            inside = {**place, "content_index": 0}
            done = {"text": part["text"], "logprobs": part.get("logprobs", [])}
            names = ("response.output_text.done", "response.content_part.done")
        else:
            part = item["summary"][0]
            inside = {**place, "summary_index": 0}
            done = {"text": part["text"]}
            names = ("response.reasoning_summary_text.done", "response.reasoning_summary_part.done")
        return [
            {"type": names[0], **inside, **done},
            {"type": names[1], **inside, "part": part},
            {"type": "response.output_item.done", "output_index": place["output_index"], "item": item},
        ]


def _summary(text: str) -> Object:
    return {"type": "summary_text", "text": text}


def _reasoning_item(identity: str, text: str) -> Object:
    """As `assistant_items` makes it."""
    return {"id": f"rs_{identity}", "type": "reasoning", "summary": [_summary(text)]}


def _call_events(index: int, item: Object) -> list[Object]:
    place = {"item_id": item["id"], "output_index": index}
    started = {**item, "status": "in_progress", "arguments": ""}
    whole = {"arguments": item["arguments"], "name": item["name"]}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": started},
        {"type": "response.function_call_arguments.delta", **place, "delta": item["arguments"]},
        {"type": "response.function_call_arguments.done", **place, **whole},
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ]

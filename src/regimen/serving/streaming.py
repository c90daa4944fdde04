"""Answers sent while they are made: text out of tokens as they come, and server-sent events.

In: tokens one by one, then the whole message. Out: what of the text is certain to stay, split into reasoning and
content; an HTTP response that closes its source when the client goes away. A tool call, and what follows it, is held
back until the answer is whole, as only then it is known to be a call. Refuses nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Object = dict[str, Any]
_THOUGHT, _THOUGHT_END, _CALL = "<think>", "</think>", "<tool_call>"
_INCOMPLETE = "\ufffd"  # what a tokenizer shows for part of a character


class AnswerText:
    """The text of one answer. `reasoning` and `content` are what was handed out so far."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_ids: Sequence[int]) -> None:
        self.reasoning = ""
        self.content = ""
        self._decode = decode
        self._stop_ids = frozenset(stop_ids)
        self._ids: list[int] = []
        self._text = ""
        # Tokens are decoded behind those before them, since some change with what precedes them.
        self._start = self._read = 0

    def feed(self, token: int) -> tuple[str, str]:
        """Take a token; the reasoning and the content that became certain."""
        if token in self._stop_ids:
            return "", ""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            return "", ""
        self._text += now[len(before) :]
        self._start, self._read = self._read, len(self._ids)
        return self._handed_out(*_certain(self._text))

    def finish(self, message: Object) -> tuple[Object, str, str]:
        """The message as streamed, and the rest of its reasoning and content.

        A thought that the limit cut off was handed out as reasoning, and stays it.
        """
        if self.reasoning and not message.get("reasoning_content"):
            thought = self._text.lstrip()[len(_THOUGHT) :]
            message = {**message, "reasoning_content": thought, "content": ""}
        rest = self._handed_out(message.get("reasoning_content") or "", message.get("content") or "")
        return message, *rest

    def _handed_out(self, reasoning: str, content: str) -> tuple[str, str]:
        more = _rest(reasoning, self.reasoning), _rest(content, self.content)
        self.reasoning += more[0]
        self.content += more[1]
        return more


def _rest(whole: str, begun: str) -> str:
    return whole[len(begun) :] if whole.startswith(begun) else ""


def _certain(text: str) -> tuple[str, str]:
    """The reasoning and the content that no later text can change."""
    head = text.lstrip()
    if _THOUGHT.startswith(head):
        return "", ""
    reasoning = ""
    if head.startswith(_THOUGHT):
        reasoning, closed, text = head[len(_THOUGHT) :].partition(_THOUGHT_END)
        if not closed:
            return _without_beginning(reasoning, _THOUGHT_END), ""
    before, call, _ = text.partition(_CALL)
    return reasoning, (before if call else _without_beginning(before, _CALL)).strip()


def _without_beginning(text: str, mark: str) -> str:
    """`text` without what may be the beginning of `mark` at its end."""
    longest = max((size for size in range(1, len(mark)) if text.endswith(mark[:size])), default=0)
    return text[: len(text) - longest]


def event(value: Object, name: str | None = None) -> str:
    """One server-sent event; JSON holds no line breaks."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n"


class EventStream(Response):
    """Server-sent events from a generator, which is closed with the connection: what makes them ends then."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[str], headers: dict[str, str]) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store"})
        del self.headers["content-length"]  # nobody knows it yet
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all events."""
        async with aclosing(self.lines) as lines:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for one in lines:
                await send({"type": "http.response.body", "body": one.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

"""Replies in the shape of OpenAI's chat completions, whole or as a stream of chunks.

In: replies, or tokens as they are sampled. Out: `chat.completion` objects or the chunks of a stream. Where asked, token
ids in the spellings of vLLM (`token_id:<int>`, `token_ids`) and of NeMo Gym (three fields on the message).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from regimen.generation.base import Reply
from regimen.gym.protocol import token_fields
from regimen.serving.engine import SampledToken
from regimen.serving.streaming import AnswerText
from regimen.serving.wire import ChatRequest

Object = dict[str, Any]
Decode = Callable[[Sequence[int]], str]


def completion(
    identity: str, request: ChatRequest, model: str, replies: Sequence[Reply], decode: Decode, with_ids: bool
) -> Object:
    """The whole answer."""
    choices = [
        {
            "index": index,
            "message": _message(reply, with_ids),
            "finish_reason": finish_reason(reply),
            "logprobs": _logprobs(reply, request, decode),
            **({"token_ids": reply.tokens.ids} if with_ids and reply.tokens else {}),
        }
        for index, reply in enumerate(replies)
    ]
    body = {
        **_head(identity, "chat.completion", model, min(reply.weight_version for reply in replies)),
        "choices": choices,
        "usage": usage(replies),
    }
    tokens = replies[0].tokens
    return {**body, "prompt_token_ids": tokens.prompt_ids} if with_ids and tokens else body


class ChatStream:
    """The chunks of one stream: roles, reasoning and words as they come, calls, reasons to stop, where asked the usage.

    Log-probabilities and ids (`with_ids`) of tokens whose text is held back stand in the next chunk.
    """

    def __init__(
        self,
        identity: str,
        request: ChatRequest,
        model: str,
        weight_version: int,
        prompt_ids: list[int],
        decode: Decode,
        stop_ids: Sequence[int],
        with_ids: bool,
    ) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.decode = decode
        self.with_ids = with_ids
        self._head = _head(identity, "chat.completion.chunk", model, weight_version)
        self._texts = [AnswerText(decode, stop_ids) for _ in range(request.n or 1)]
        self._held: list[list[SampledToken]] = [[] for _ in self._texts]
        self._begun: set[int] = set()
        self._replies: list[Reply] = []
        self._has_failed = False

    def take(self, index: int, item: SampledToken | Reply) -> list[Object]:
        """The chunks that an item of `Engine.stream` gives."""
        chunks = self._begin(index)
        if isinstance(item, SampledToken):
            self._held[index].append(item)
            return [*chunks, *self._deltas(index, *self._texts[index].feed(item.token))]
        self._replies.append(item)
        message, reasoning, content = self._texts[index].finish(item.message)
        chunks += self._deltas(index, reasoning, content)
        for number, call in enumerate(message.get("tool_calls") or []):
            chunks.append(self._chunk(index, {"tool_calls": [{"index": number, **call}]}))
        return [*chunks, self._chunk(index, {}, finish_reason(item))]

    def end(self) -> list[Object]:
        """What follows the last answer."""
        options = self.request.stream_options
        asked = options is not None and options.include_usage and not self._has_failed
        return [{**self._head, "choices": [], "usage": usage(self._replies)}] if asked else []

    def error(self, problem: Object) -> Object:
        """The event of a failure in the midst of the stream."""
        self._has_failed = True
        return {"error": problem}

    def _begin(self, index: int) -> list[Object]:
        if index in self._begun:
            return []
        first = {} if self._begun or not self.with_ids else {"prompt_token_ids": self.prompt_ids}
        self._begun.add(index)
        return [{**self._chunk(index, {"role": "assistant", "content": ""}), **first}]

    def _deltas(self, index: int, reasoning: str, content: str) -> list[Object]:
        deltas = {"reasoning_content": reasoning, "content": content}
        return [self._chunk(index, {key: text}) for key, text in deltas.items() if text]

    def _chunk(self, index: int, delta: Object, finish: str | None = None) -> Object:
        held, self._held[index] = self._held[index], []
        choice: Object = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        ids, logprobs = [one.token for one in held], [one.logprob for one in held]
        if held and self.request.logprobs:
            entries = token_logprobs(ids, logprobs, bool(self.request.return_tokens_as_token_ids), self.decode)
            choice["logprobs"] = {"content": entries, "refusal": None}
        return {**self._head, "choices": [{**choice, "token_ids": ids} if self.with_ids else choice]}


def finish_reason(reply: Reply) -> str:
    """Why the answer ended, in OpenAI's words."""
    if reply.stop_reason == "length":
        return "length"
    return "tool_calls" if reply.message.get("tool_calls") else "stop"


def usage(replies: Sequence[Reply]) -> Object:
    """Tokens of the prompt, and of all answers."""
    prompt, sampled = replies[0].num_input_tokens, sum(reply.num_output_tokens for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def token_logprobs(ids: Sequence[int], logprobs: Sequence[float], as_ids: bool, decode: Decode) -> list[Object]:
    """One entry per sampled token."""
    entries: list[Object] = []
    for token, logprob in zip(ids, logprobs, strict=True):
        text = decode([token])
        shown = f"token_id:{token}" if as_ids else text
        entries.append({"token": shown, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
    return entries


def _logprobs(reply: Reply, request: ChatRequest, decode: Decode) -> Object | None:
    if not request.logprobs or reply.tokens is None:
        return None
    as_ids = bool(request.return_tokens_as_token_ids)
    return {"content": token_logprobs(reply.tokens.ids, reply.tokens.logprobs, as_ids, decode), "refusal": None}


def _message(reply: Reply, with_ids: bool) -> Object:
    message: Object = {"role": "assistant", "content": reply.message.get("content") or "", "refusal": None}
    for key in ("reasoning_content", "tool_calls"):
        if reply.message.get(key):
            message[key] = reply.message[key]
    if with_ids and reply.tokens is not None:
        message |= token_fields(reply.tokens)
    return message


def _head(identity: str, kind: str, model: str, version: int) -> Object:
    return {
        "id": f"chatcmpl-{identity}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"weights-{version}",
        "weight_version": version,
    }

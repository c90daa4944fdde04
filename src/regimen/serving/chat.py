"""Replies in the shape of OpenAI's chat completions, whole or as a stream of chunks.

In: replies. Out: `chat.completion` objects or the chunks of a stream. Where asked, token ids in the spellings of vLLM
(`token_id:<int>`, `token_ids`) and of NeMo Gym (three fields on the message).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from regimen.generation.base import Reply, Tokens
from regimen.gym.protocol import token_fields
from regimen.serving.wire import ChatRequest

Object = dict[str, Any]
Decode = Callable[[Sequence[int]], str]
_PIECE = 24  # characters of a chunk


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
    body = {**_head(identity, "chat.completion", model, replies), "choices": choices, "usage": usage(replies)}
    tokens = replies[0].tokens
    return {**body, "prompt_token_ids": tokens.prompt_ids} if with_ids and tokens else body


def chunks(
    identity: str, request: ChatRequest, model: str, replies: Sequence[Reply], decode: Decode
) -> Iterator[Object]:
    """The answer in pieces: roles, reasoning, words, calls, reasons to stop, and where asked the usage."""
    head = _head(identity, "chat.completion.chunk", model, replies)

    def chunk(index: int, delta: Object, finish: str | None = None, logprobs: Object | None = None) -> Object:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**head, "choices": [choice]}

    for index, reply in enumerate(replies):
        message = reply.message
        logprobs = _logprobs(reply, request, decode)
        yield chunk(index, {"role": "assistant", "content": ""}, logprobs=logprobs)
        for piece in pieces(message.get("reasoning_content") or ""):
            yield chunk(index, {"reasoning_content": piece})
        for piece in pieces(message.get("content") or ""):
            yield chunk(index, {"content": piece})
        for number, call in enumerate(message.get("tool_calls") or []):
            yield chunk(index, {"tool_calls": [{"index": number, **call}]})
        yield chunk(index, {}, finish_reason(reply))
    if request.stream_options and request.stream_options.include_usage:
        yield {**head, "choices": [], "usage": usage(replies)}


def finish_reason(reply: Reply) -> str:
    """Why the answer ended, in OpenAI's words."""
    if reply.stop_reason == "length":
        return "length"
    return "tool_calls" if reply.message.get("tool_calls") else "stop"


def usage(replies: Sequence[Reply]) -> Object:
    """Tokens of the prompt, and of all answers."""
    prompt, sampled = replies[0].num_input_tokens, sum(reply.num_output_tokens for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def pieces(text: str) -> list[str]:
    """A text in short pieces."""
    return [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]


def token_logprobs(tokens: Tokens, as_ids: bool, decode: Decode) -> list[Object]:
    """One entry per sampled token."""
    entries: list[Object] = []
    for token, logprob in zip(tokens.ids, tokens.logprobs, strict=True):
        text = decode([token])
        shown = f"token_id:{token}" if as_ids else text
        entries.append({"token": shown, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
    return entries


def _logprobs(reply: Reply, request: ChatRequest, decode: Decode) -> Object | None:
    if not request.logprobs or reply.tokens is None:
        return None
    as_ids = bool(request.return_tokens_as_token_ids)
    return {"content": token_logprobs(reply.tokens, as_ids, decode), "refusal": None}


def _message(reply: Reply, with_ids: bool) -> Object:
    message: Object = {"role": "assistant", "content": reply.message.get("content") or "", "refusal": None}
    for key in ("reasoning_content", "tool_calls"):
        if reply.message.get(key):
            message[key] = reply.message[key]
    if with_ids and reply.tokens is not None:
        message |= token_fields(reply.tokens)
    return message


def _head(identity: str, kind: str, model: str, replies: Sequence[Reply]) -> Object:
    version = min(reply.weight_version for reply in replies)
    return {
        "id": f"chatcmpl-{identity}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"weights-{version}",
        "weight_version": version,
    }

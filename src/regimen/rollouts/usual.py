"""Rows of the usual shape to chat messages, straight from the line, without a dict for each item.

In: a line of a rollouts file. Out: what was `Told` in it, exactly as `messages.output_messages` has it, with the
request still as JSON; or None for a row of any other shape, which goes the general way. Usual are reasoning
in clear text, answers of the assistant, function calls and their outputs as text; token ids, refusals, images,
messages of others than the assistant and chat spelling are not. Refuses nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Message = dict[str, Any]


class _Part(msgspec.Struct, gc=False):
    """A part of a content: text. Of other fields none changes what it says."""

    text: str
    type: Literal["output_text", "input_text", "text", "summary_text", "reasoning_text"] | None = None


class _Item(msgspec.Struct, gc=False):
    """An item of the output. What would make it unusual must be missing or null."""

    type: Literal["reasoning", "message", "function_call", "function_call_output"]
    id: str | None = None
    call_id: str | None = None
    role: Literal["assistant"] | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None
    summary: str | list[_Part] | None = None
    content: str | list[_Part] | None = None
    encrypted_content: None = None
    refusal: None = None
    reasoning_content: None = None
    tool_calls: None = None
    prompt_token_ids: None = None
    generation_token_ids: None = None
    generation_log_probs: None = None


class _Response(msgspec.Struct, gc=False):
    output: list[_Item]


class Request(msgspec.Struct, gc=False):
    """The parts of a request that the model saw, as they stand in the line."""

    input: msgspec.Raw
    instructions: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Row(msgspec.Struct, gc=False):
    responses_create_params: msgspec.Raw
    response: _Response
    regimen: dict[str, Any] | None = None


class _Rest(msgspec.Struct, gc=False):
    """What follows the request in a row; where it is given a second time, the last one counts."""

    response: _Response
    regimen: dict[str, Any] | None = None
    responses_create_params: None = None


class Told(msgspec.Struct, frozen=True):
    """What a row tells: the request, the messages that followed, the collector's stamp."""

    request: Request
    completion: list[Message]
    stamp: dict[str, Any] | None
    reasoning_characters: int


_decode = msgspec.json.Decoder(_Row).decode
_decode_rest = msgspec.json.Decoder(_Rest).decode
_decode_request = msgspec.json.Decoder(Request).decode
_REQUEST = b'{"responses_create_params":'


class Teller:
    """Tells what rows say, one after the other. Of repeats, which begin with the same request, it is read once."""

    def __init__(self) -> None:
        self._begin = b""
        self._request = Request(msgspec.Raw(b"null"))

    def told_of(self, line: bytes) -> Told | None:
        """What a line of the usual shape tells; None for any other line."""
        try:
            row = self._row_of(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        completion = _completion(row.response.output)
        if completion is None:
            return None
        thoughts = [message["reasoning_content"] for message in completion if "reasoning_content" in message]
        return Told(self._request, completion, row.regimen, sum(map(len, thoughts)))

    def _row_of(self, line: bytes) -> _Row | _Rest:
        """The row; its request becomes the one that is known."""
        begin = self._begin
        if begin and line.startswith(begin):
            return _decode_rest(b"".join((b"{", memoryview(line)[len(begin) :])))
        self._begin = b""
        row = _decode(line)
        asked = bytes(row.responses_create_params)
        self._request = _decode_request(asked)
        start = len(_REQUEST) + line.startswith(b" ", len(_REQUEST))
        if line.startswith(_REQUEST) and line.startswith(asked + b",", start):
            self._begin = line[: start + len(asked) + 1]
        return row


def _completion(items: list[_Item]) -> list[Message] | None:
    """The messages of the items, one for each model call; None where an item is unusual after all.

    A call ends at a tool output, and where text or reasoning follows text with no function call in between.
    """
    messages: list[Message] = []
    names: dict[str, str] = {}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Message] = []
    is_open = False
    for item in items:
        kind = item.type
        if is_open and (kind == "function_call_output" or (texts and not calls and kind != "function_call")):
            messages.append(_answer(texts, thoughts, calls))
            texts, thoughts, calls, is_open = [], [], [], False
        if kind == "function_call_output":
            if item.call_id is None or item.output is None:
                return None
            messages.append(_observation(item.call_id, names.get(item.call_id), item.output))
            continue
        is_open = True
        if kind == "reasoning":
            if thought := _text(item.content, "\n") or _text(item.summary, "\n"):
                thoughts.append(thought)
        elif kind == "function_call":
            call_id = item.call_id or item.id
            if not call_id or item.name is None or item.arguments is None:
                return None
            names[call_id] = item.name
            function = {"name": item.name, "arguments": item.arguments}
            calls.append({"id": call_id, "type": "function", "function": function})
        elif item.role is None:
            return None
        else:
            texts.append(_text(item.content, ""))
    if is_open:
        messages.append(_answer(texts, thoughts, calls))
    return messages


def _observation(call_id: str, name: str | None, output: str) -> Message:
    if name is None:
        return {"role": "tool", "tool_call_id": call_id, "content": output}
    return {"role": "tool", "tool_call_id": call_id, "name": name, "content": output}


def _answer(texts: list[str], thoughts: list[str], calls: list[Message]) -> Message:
    """What the model said in one call."""
    message: Message = {"role": "assistant", "content": texts[0] if len(texts) == 1 else "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _text(content: str | list[_Part] | None, separator: str) -> str:
    if not content:
        return ""
    if isinstance(content, str):
        return content
    return content[0].text if len(content) == 1 else separator.join([part.text for part in content])

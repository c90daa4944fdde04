"""Responses items to chat messages, in OpenAI's spelling.

In: `responses_create_params` (instructions, input, tools) and the items of `response.output`.
Out: chat messages and chat tools, as chat templates and standard data loaders take them. Text, call ids and the
argument strings of tool calls come out exactly as they were. One model call becomes one assistant message.
Refuses, with `RolloutError`: item types and content parts that have no text form (images, hosted tools).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from regimen.errors import RolloutError
from regimen.rollouts.turns import TOKEN_FIELDS

Message = dict[str, Any]


def input_messages(params: dict[str, Any]) -> list[Message]:
    """The prompt of an episode: `instructions` as a system message, then the messages of `input`."""
    messages: list[Message] = []
    instructions = params.get("instructions")
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    given = params.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        messages.extend(_messages(cast("list[Any]", given), "input"))
    else:
        raise RolloutError(f"input is {kind_of(given)}", expected="a string or a list of items")
    return messages


def output_messages(output: Sequence[dict[str, Any]]) -> list[Message]:
    """What followed the prompt: assistant, tool and (where the environment spoke) user messages, in order."""
    return _messages(output, "output")


def chat_tools(params: dict[str, Any]) -> list[dict[str, Any]]:
    """The tools in chat spelling: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(_objects(params.get("tools"), "tools")):
        nested = tool.get("function")
        flat = cast("dict[str, Any]", nested) if isinstance(nested, dict) else tool
        if "name" not in flat:
            raise RolloutError(
                f"a tool of type {tool.get('type')!r} has no name", where=f"tools[{index}]", expected="a function tool"
            )
        function: dict[str, Any] = {"name": flat["name"]}
        if flat.get("description") is not None:
            function["description"] = flat["description"]
        function["parameters"] = flat.get("parameters") or {"type": "object", "properties": {}}
        tools.append({"type": "function", "function": function})
    return tools


def kind_of(value: object) -> str:
    """The JSON name of a value's kind, for messages: "missing", "a string", "a list" and so on."""
    if value is None:
        return "missing"
    names: dict[type[Any], str] = {
        bool: "true or false",
        str: "a string",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def content_text(content: object, where: str = "content") -> str:
    """The text of a message's content: a string, or parts whose texts are joined without a separator."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RolloutError(f"content is {kind_of(content)}", where=where, expected="a string or a list of parts")
    return "".join(_part_text(part, where) for part in cast("list[Any]", content))


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        for key in ("text", "refusal"):
            text = cast("dict[str, Any]", part).get(key)
            if isinstance(text, str):
                return text
        seen = f"a part of type {cast('dict[str, Any]', part).get('type')!r}"
    else:
        seen = kind_of(part)
    raise RolloutError(f"content holds {seen}", where=where, expected="text parts")


def reasoning_text(item: dict[str, Any]) -> str:
    """The text of a reasoning item: its summaries, or its content where there is no summary; "" when hidden."""
    for key in ("summary", "content"):
        value = item.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:
            return "\n".join(_part_text(part, f"reasoning {key}") for part in cast("list[Any]", value))
    return ""


def final_text(output: Sequence[dict[str, Any]]) -> str | None:
    """The text of the last assistant message; None where the model never spoke."""
    for item in reversed(output):
        if item.get("role") == "assistant" and item_type(item) == "message":
            return content_text(item.get("content"))
    return None


def item_type(item: dict[str, Any]) -> str:
    """The item's type; where it is not written, told by its fields."""
    written = item.get("type")
    if isinstance(written, str):
        return written
    if "role" in item:
        return "message"
    if "call_id" in item and "output" in item:
        return "function_call_output"
    return "function_call" if "arguments" in item else "unknown"


def _objects(value: object, where: str) -> list[dict[str, Any]]:
    """A list of objects that may be missing."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in cast("list[Any]", value)):
        raise RolloutError(f"is {kind_of(cast('object', value))}", where=where, expected="a list of objects")
    return cast("list[dict[str, Any]]", value)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _messages(items: Sequence[Any], field: str) -> list[Message]:
    builder = _Builder(has_tokens=any(map(_has_tokens, items)))
    for index, item in enumerate(items):
        where = f"{field}[{index}]"
        if not isinstance(item, dict):
            raise RolloutError(f"the item is {kind_of(item)}", where=where, expected="an object")
        builder.add(cast("dict[str, Any]", item), where)
    return builder.finish()


class _Builder:
    """Gathers the items of one model call into one assistant message.

    Where items carry token ids, a model call ends with the item that carries them. Elsewhere it ends at a tool
    output or a user message, and where text or reasoning follows text with no call waiting for its output.
    """

    def __init__(self, has_tokens: bool) -> None:
        self.has_tokens = has_tokens
        self.messages: list[Message] = []
        self.names: dict[str, str] = {}
        self.reasoning: list[str] = []
        self.texts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.is_open = False

    def add(self, item: dict[str, Any], where: str) -> None:
        """Take the next item."""
        kind = item_type(item)
        if kind == "message" and item.get("role") == "assistant":
            self._add_text(item, where)
        elif kind == "message":
            self._add_other(item, where)
        elif kind == "reasoning":
            self._end_before_text()
            self.reasoning.append(reasoning_text(item))
            self.is_open = True
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self._add_tool(item.get("call_id"), item.get("output"), None)
        else:
            raise RolloutError(
                f"an item of type {kind!r} has no chat form",
                where=where,
                expected="message, reasoning, function_call or function_call_output",
            )
        if item.get(TOKEN_FIELDS[1]) is not None:
            self._close()

    def finish(self) -> list[Message]:
        """Close the open message and return all of them."""
        self._close()
        return self.messages

    def _end_before_text(self) -> None:
        if not self.has_tokens and self.texts and not self.calls:
            self._close()

    def _add_text(self, item: dict[str, Any], where: str) -> None:
        self._end_before_text()
        self.is_open = True
        reasoning = item.get("reasoning_content")
        if isinstance(reasoning, str) and reasoning:
            self.reasoning.append(reasoning)
        self.texts.append(content_text(item.get("content"), where))
        for call in _objects(item.get("tool_calls"), f"{where}.tool_calls"):
            function = call.get("function")
            named = cast("dict[str, Any]", function) if isinstance(function, dict) else call
            self._add_call({"call_id": call.get("id"), **named}, where)

    def _add_call(self, item: dict[str, Any], where: str) -> None:
        name = item.get("name")
        if not isinstance(name, str):
            raise RolloutError("a function call has no name", where=where)
        call_id = str(item.get("call_id") or item.get("id") or f"call_{len(self.names)}")
        self.names[call_id] = name
        function = {"name": name, "arguments": _as_text(item.get("arguments", "{}"))}
        self.calls.append({"id": call_id, "type": "function", "function": function})
        self.is_open = True

    def _add_tool(self, call_id: object, output: object, name: object) -> None:
        self._close()
        text = content_text(output) if _is_parts(output) else _as_text(output)
        key = str(call_id) if call_id is not None else next(reversed(self.names), "")
        found = name if isinstance(name, str) else self.names.get(key)
        message: Message = {"role": "tool", "tool_call_id": key}
        if found is not None:
            message["name"] = found
        self.messages.append({**message, "content": text})

    def _add_other(self, item: dict[str, Any], where: str) -> None:
        role = item.get("role")
        if role == "tool":
            self._add_tool(item.get("tool_call_id"), item.get("content"), item.get("name"))
            return
        if role not in ("user", "system", "developer"):
            raise RolloutError(
                f"the role is {role!r}", where=where, expected="user, assistant, system, developer or tool"
            )
        self._close()
        # Chat templates know no developer role; it is the system role under a later name.
        spoken = "system" if role == "developer" else role
        self.messages.append({"role": spoken, "content": content_text(item.get("content"), where)})

    def _close(self) -> None:
        if not self.is_open:
            return
        message: Message = {"role": "assistant", "content": "".join(self.texts)}
        reasoning = "\n".join(text for text in self.reasoning if text)
        if reasoning:
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        self.messages.append(message)
        self.reasoning, self.texts, self.calls, self.is_open = [], [], [], False


def _has_tokens(item: object) -> bool:
    return isinstance(item, dict) and cast("dict[str, Any]", item).get(TOKEN_FIELDS[1]) is not None


def _is_parts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, dict) and "text" in part for part in cast("list[Any]", value)
    )

"""Responses items to chat messages, in OpenAI's spelling.

In: `responses_create_params` (instructions, input, tools) and the items of `response.output`.
Out: chat messages and chat tools, as chat templates and standard data loaders take them. Text, call ids and the
argument strings of tool calls come out exactly as they were. One model call becomes one assistant message. Content is
a string; only where images stand in it is it a list of parts, with the images as references. Refusals stand in their
own field. What chat messages cannot hold is listed in docs/normal-form.md.
Refuses, with `RolloutError`: item types and content parts without a chat form (hosted tools, files, audio).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from regimen.errors import RolloutError
from regimen.rollouts.turns import TOKEN_FIELDS

Message = dict[str, Any]
Content = str | list[dict[str, Any]]

SAMPLED_IDS = TOKEN_FIELDS[1]
# Tuples, since what is looked up in them may be a list.
TEXT_PARTS = ("output_text", "summary_text", "reasoning_text", "input_text", "text")
IMAGE_PARTS = ("input_image", "image_url")


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


def content_text(content: object) -> str:
    """The text of a message's content: a string, or parts whose texts are joined without a separator.

    A refusal is text too; an image has none.
    """
    if isinstance(content, str):
        return content
    parts = _parts(content)
    return "".join(
        part if isinstance(part, str) else cast("str", part["refusal"])
        for part in parts
        if isinstance(part, str) or "refusal" in part
    )


def split_content(content: object) -> tuple[Content, str]:
    """Content in chat spelling, and the refusal that stands among its parts ("" where none does)."""
    if isinstance(content, str):
        return content, ""
    parts = _parts(content)
    if len(parts) == 1 and isinstance(parts[0], str):  # by far the most
        return parts[0], ""
    refusal = "".join(cast("str", part["refusal"]) for part in parts if isinstance(part, dict) and "refusal" in part)
    said = [part for part in parts if isinstance(part, str) or "refusal" not in part]
    if any(isinstance(part, dict) for part in said):
        return [text_part(part) if isinstance(part, str) else part for part in said], refusal
    return "".join(cast("list[str]", said)), refusal


def text_part(text: str) -> dict[str, Any]:
    """Text as a part of content that holds images too."""
    return {"type": "text", "text": text}


def _parts(content: object) -> list[str | dict[str, Any]]:
    """Content part by part: texts as strings, refusals and images as objects."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise RolloutError(f"content is {kind_of(content)}", expected="a string or a list of parts")
    return [_part(part) for part in cast("list[Any]", content)]


def _part(part: object) -> str | dict[str, Any]:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RolloutError(f"content holds {kind_of(part)}", expected="text, refusal and image parts")
    part = cast("dict[str, Any]", part)
    kind, text = part.get("type"), part.get("text")
    if isinstance(text, str) and (kind in TEXT_PARTS or kind is None):
        return text
    if isinstance(part.get("refusal"), str) and kind in ("refusal", None):
        return {"refusal": part["refusal"]}
    if kind in IMAGE_PARTS or (kind is None and "image_url" in part):
        return _image(part)
    raise RolloutError(f"content holds a part of type {kind!r}", expected="text, refusal and image parts")


def _image(part: dict[str, Any]) -> dict[str, Any]:
    """An image as the reference it is; nothing is fetched or decoded."""
    found = part.get("image_url")
    image = {"url": found} if isinstance(found, str) else dict(cast("dict[str, Any]", found or {}))
    if not isinstance(image.get("url"), str):
        raise RolloutError("content holds an image without a URL", expected="image_url, a web or data address")
    detail = part.get("detail") or image.get("detail")
    reference = {"url": image["url"]} if detail is None else {"url": image["url"], "detail": detail}
    return {"type": "image_url", "image_url": reference}


def reasoning_text(item: dict[str, Any]) -> str:
    """The text of a reasoning item: its content, or its summaries where there is no content; "" when hidden."""
    for value in (item.get("content"), item.get("summary")):
        if not value:
            continue
        if len(parts := _parts(value)) == 1 and isinstance(parts[0], str):  # by far the most
            if parts[0]:
                return parts[0]
            continue
        if not all(isinstance(part, str) for part in parts):
            raise RolloutError("reasoning holds a refusal or an image", expected="text parts")
        if text := "\n".join(cast("list[str]", parts)):
            return text
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
    builder = _Builder(items)
    for index, item in enumerate(items):
        try:
            if not isinstance(item, dict):
                raise RolloutError(f"the item is {kind_of(item)}", expected="an object")
            builder.add(cast("dict[str, Any]", item))
        except RolloutError as error:
            where = f"{field}[{index}]" + (f".{error.where}" if error.where else "")
            raise RolloutError(error.message, where=where, expected=error.expected) from None
    return builder.finish()


class _Builder:
    """Gathers the items of one model call into one assistant message.

    Where items carry token ids, a model call ends with the item that carries them. Elsewhere it ends at a tool
    output or a user message, and where text or reasoning follows text with no call waiting for its output.
    """

    __slots__ = ("calls", "has_tokens", "is_open", "items", "messages", "names", "reasoning", "refusals", "texts")

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items
        self.has_tokens: bool | None = None
        self.messages: list[Message] = []
        self.names: dict[str, str] = {}
        self.reasoning: list[str] = []
        self.texts: list[Content] = []
        self.refusals: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.is_open = False

    def add(self, item: dict[str, Any]) -> None:
        """Take the next item."""
        kind = item.get("type")
        if not isinstance(kind, str):
            kind = item_type(item)
        if kind == "function_call":
            self._add_call(item)
        elif kind == "function_call_output":
            self._add_tool(item.get("call_id"), item.get("output"), None)
        elif kind == "reasoning":
            self._end_before_text()
            if text := reasoning_text(item):
                self.reasoning.append(text)
            self.is_open = True
        elif kind == "message":
            self._add_message(item)
        else:
            raise RolloutError(
                f"an item of type {kind!r} has no chat form",
                expected="message, reasoning, function_call or function_call_output",
            )
        if item.get(SAMPLED_IDS) is not None:
            self._close()

    def finish(self) -> list[Message]:
        """Close the open message and return all of them."""
        self._close()
        return self.messages

    def _end_before_text(self) -> None:
        if self.texts and not self.calls and not self._any_tokens():
            self._close()

    def _any_tokens(self) -> bool:
        if self.has_tokens is None:
            self.has_tokens = any(map(_has_tokens, self.items))
        return self.has_tokens

    def _add_message(self, item: dict[str, Any]) -> None:
        role = item.get("role")
        if role == "assistant":
            self._add_answer(item)
        elif role == "tool":
            self._add_tool(item.get("tool_call_id"), item.get("content"), item.get("name"))
        elif role in ("user", "system", "developer"):
            self._close()
            # Chat templates know no developer role; it is the system role under a later name.
            spoken = "system" if role == "developer" else role
            content, refusal = split_content(item.get("content"))
            if refusal:
                raise RolloutError(f"a {role} message holds a refusal", expected="refusals of the assistant only")
            self.messages.append({"role": spoken, "content": content})
        else:
            raise RolloutError(f"the role is {role!r}", expected="user, assistant, system, developer or tool")

    def _add_answer(self, item: dict[str, Any]) -> None:
        self._end_before_text()
        self.is_open = True
        content, refusal = split_content(item.get("content"))
        self.texts.append(content)
        refusal = item.get("refusal") or refusal
        if isinstance(refusal, str) and refusal:
            self.refusals.append(refusal)
        reasoning = item.get("reasoning_content")
        if isinstance(reasoning, str) and reasoning:
            self.reasoning.append(reasoning)
        if item.get("tool_calls") is None:
            return
        for call in _objects(item["tool_calls"], "tool_calls"):
            function = call.get("function")
            named = cast("dict[str, Any]", function) if isinstance(function, dict) else call
            self._add_call({"call_id": call.get("id"), **named})

    def _add_call(self, item: dict[str, Any]) -> None:
        name = item.get("name")
        if not isinstance(name, str):
            raise RolloutError("a function call has no name")
        given = item.get("call_id") or item.get("id")
        call_id = str(given) if given else self._free_id()
        arguments = item.get("arguments")
        if not isinstance(arguments, str):
            arguments = "{}" if arguments is None else _as_text(arguments)
        self.names.pop(call_id, None)  # the latest call stands last
        self.names[call_id] = name
        self.calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
        self.is_open = True

    def _free_id(self) -> str:
        number = len(self.names)
        while f"call_{number}" in self.names:
            number += 1
        return f"call_{number}"

    def _add_tool(self, call_id: object, output: object, name: object) -> None:
        self._close()
        key = str(call_id) if call_id is not None else next(reversed(self.names), "")
        found = name if isinstance(name, str) else self.names.get(key)
        message: Message = {"role": "tool", "tool_call_id": key}
        if found is not None:
            message["name"] = found
        message["content"] = output if isinstance(output, str) else _output_content(output)
        self.messages.append(message)

    def _close(self) -> None:
        if not self.is_open:
            return
        message: Message = {"role": "assistant", "content": _joined(self.texts)}
        if self.refusals:
            message["refusal"] = "".join(self.refusals)
            self.refusals = []
        if self.reasoning:
            message["reasoning_content"] = "\n".join(self.reasoning)
            self.reasoning = []
        if self.calls:
            message["tool_calls"] = self.calls
            self.calls = []
        self.messages.append(message)
        self.texts = []
        self.is_open = False


def _has_tokens(item: object) -> bool:
    return isinstance(item, dict) and cast("dict[str, Any]", item).get(SAMPLED_IDS) is not None


def _joined(contents: Sequence[Content]) -> Content:
    """The contents of one model call's messages as one content."""
    if not contents:
        return ""
    if len(contents) == 1:
        return contents[0]
    if not any(isinstance(content, list) for content in contents):
        return "".join(cast("Sequence[str]", contents))
    return [
        part
        for content in contents
        if content
        for part in ([text_part(content)] if isinstance(content, str) else content)
    ]


def _output_content(output: object) -> Content:
    """What a tool said: text, parts in chat spelling, or any other value as the JSON that it is."""
    if output is None:
        return ""
    if isinstance(output, list) and output and all(map(_is_output_part, cast("list[Any]", output))):
        return split_content(cast("object", output))[0]
    return _as_text(cast("object", output))


def _is_output_part(part: object) -> bool:
    """Whether a value in a tool's output is a content part, not data that happens to be a list of objects."""
    if not isinstance(part, dict):
        return False
    part = cast("dict[str, Any]", part)
    kind = part.get("type")
    if kind in IMAGE_PARTS:
        return "image_url" in part
    return isinstance(part.get("text"), str) and (kind in TEXT_PARTS or set(part) == {"text"})

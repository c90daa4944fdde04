"""Chat messages back to Responses items: the other direction of the message mapping, written on its own.

In: chat messages and tools, as a training row holds them (OpenAI's spelling, or NeMo RL's flat one).
Out: one list of items per message; one after the other they are what a Responses API would hold.
Refuses, with `ConvertError`: messages and parts that no conversion writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regimen.errors import ConvertError

Item = dict[str, Any]


def render_messages(messages: Sequence[Mapping[str, Any]]) -> list[list[Item]]:
    """The items of each message: one for what was said to the model, those of one model call for an answer."""
    return [_items_of(message) for message in messages]


def render_tools(tools: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Tools in the flat spelling of Responses requests."""
    return [{"type": "function", **tool.get("function", tool)} for tool in tools]


def _items_of(message: Mapping[str, Any]) -> list[Item]:
    role, content = message.get("role"), message.get("content")
    if role == "assistant":
        return _answer_items(message)
    if role == "tool":
        output = content if isinstance(content, str) else _rendered_parts(content, "input_text")
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}]
    if role in ("system", "user"):
        return [{"type": "message", "role": role, "content": _rendered_parts(content, "input_text")}]
    raise ConvertError(f"a message of role {role!r}", expected="system, user, assistant or tool")


def _answer_items(message: Mapping[str, Any]) -> list[Item]:
    items: list[Item] = []
    if message.get("reasoning_content"):
        items.append({"type": "reasoning", "summary": [{"type": "summary_text", "text": message["reasoning_content"]}]})
    parts = _rendered_parts(message.get("content"), "output_text")
    if message.get("refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    given: list[Mapping[str, Any]] = message.get("tool_calls") or []
    calls = [_call_item(call) for call in given]
    if parts or not (items or calls):
        items.append({"type": "message", "role": "assistant", "content": parts})
    return [*items, *calls]


def _call_item(call: Mapping[str, Any]) -> Item:
    function = call.get("function", call)
    return {
        "type": "function_call",
        "call_id": call.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }


def _rendered_parts(content: Any, text_type: str) -> list[Item]:
    if not content:
        return []
    if isinstance(content, str):
        return [{"type": text_type, "text": content}]
    return [_rendered_part(part, text_type) for part in content]


def _rendered_part(part: Mapping[str, Any], text_type: str) -> Item:
    if part.get("type") == "text":
        return {"type": text_type, "text": part["text"]}
    if part.get("type") == "image_url":
        image = part["image_url"]
        detail = {"detail": image["detail"]} if "detail" in image else {}
        return {"type": "input_image", "image_url": image["url"], **detail}
    raise ConvertError(f"a part of type {part.get('type')!r}", expected="text or image_url")

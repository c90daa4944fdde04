"""What an episode was asked: its prompt and tools as chat, made once for repeats that ask the same.

In: the request of a rollout. Out: an `Asked`. Refuses items that have no chat form (`RolloutError`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec
from xxhash import xxh3_128_hexdigest

from regimen.rollouts.messages import chat_tools, input_messages, reasoning_text
from regimen.rollouts.records import canonical_bytes

ASKED = ("instructions", "input", "tools")

Message = dict[str, Any]


class Asked(msgspec.Struct, frozen=True):
    """What an episode was asked, made once for repeats that ask the same: the request, then what it is as chat.

    `key` is equal for equal prompts and tools, `tools_key` for equal tools. Messages do not tell hidden reasoning and
    who was the developer.
    """

    params: dict[str, Any]
    prompt: list[Message]
    tools: list[dict[str, Any]]
    key: str
    tools_key: bytes
    reasoning_characters: int
    num_hidden_reasoning: int
    num_developer_messages: int


def asked_of(params: dict[str, Any], known: Asked | None = None) -> Asked:
    """What a request asks; `known` itself where it asks the same. Raises `RolloutError` for items with no chat form."""
    if known is not None and (params is known.params or _ask_the_same(params, known.params)):
        return known
    prompt = input_messages(params)
    if known is not None and params.get("tools") is known.params.get("tools"):
        tools, tools_key = known.tools, known.tools_key
    else:
        tools = chat_tools(params)
        tools_key = canonical_bytes(tools)
    given = params.get("input")
    hidden, developer = unwritten(cast("list[dict[str, Any]]", given) if isinstance(given, list) else [])
    key = xxh3_128_hexdigest(b"\n".join((canonical_bytes(with_numbered_calls(prompt)), tools_key)))
    return Asked(params, prompt, tools, key, tools_key, reasoning_characters(prompt), hidden, developer)


def _ask_the_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in ASKED)


def reasoning_characters(messages: list[Message]) -> int:
    """Characters of the reasoning that the messages carry."""
    return sum([len(message.get("reasoning_content", "")) for message in messages])


def unwritten(items: list[dict[str, Any]]) -> tuple[int, int]:
    """How many reasoning items have no text, and how many messages were the developer's: messages say neither."""
    hidden = developer = 0
    for item in items:
        if item.get("encrypted_content"):
            hidden += not reasoning_text(item)
        elif item.get("role") == "developer":
            developer += 1
    return hidden, developer


def with_numbered_calls(messages: Sequence[Message]) -> list[Message]:
    """`messages` with call ids replaced by the order in which they appear."""
    numbers: dict[str, str] = {}
    numbered: list[Message] = []
    for message in messages:
        if "tool_calls" not in message and "tool_call_id" not in message:
            numbered.append(message)
            continue
        copied = dict(message)
        if "tool_calls" in copied:
            copied["tool_calls"] = [
                {**call, "id": numbers.setdefault(str(call["id"]), str(len(numbers)))} for call in copied["tool_calls"]
            ]
        if "tool_call_id" in copied:
            call_id = str(copied["tool_call_id"])
            copied["tool_call_id"] = numbers.setdefault(call_id, str(len(numbers)))
        numbered.append(copied)
    return numbered

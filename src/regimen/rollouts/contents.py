"""What a rollout's output holds, seen in one pass that every collector shares.

In: the items of `response.output`. Out: `Contents`: the tool calls, the number of model calls, a hash of the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from regimen.rollouts.messages import item_type
from regimen.rollouts.turns import TOKEN_FIELDS

Item = dict[str, Any]
SAMPLED_IDS = TOKEN_FIELDS[1]
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Contents(msgspec.Struct, frozen=True):
    """`num_malformed` counts calls whose arguments are no JSON object; `num_turns` counts model calls.

    `has_ids`: some item carries sampled token ids.

    `spoken` is a hash of what the model said and called, without ids: equal within one process for equal words.
    """

    calls: list[Item]
    num_malformed: int
    num_turns: int
    has_ids: bool
    spoken: int


def contents_of(output: Sequence[Item]) -> Contents:
    """Look at every item once. A turn is an item with token ids, or where none has any, a stretch of the model's."""
    calls: list[Item] = []
    words: list[str] = []
    stretches = with_ids = malformed = 0
    speaking = False
    for item in output:
        kind = item.get("type") or item_type(item)
        by_model = True
        if kind == "function_call":
            arguments = item.get("arguments")
            calls.append(item)
            malformed += not arguments_are_object(arguments)
            words.append(str(item.get("name")))
            words.append(arguments if isinstance(arguments, str) else str(arguments))
        elif kind == "reasoning":
            words.append(_words(item.get("summary")))
            words.append(_words(item.get("content")))
        elif kind != "function_call_output" and item.get("role") == "assistant":
            words.append(_words(item.get("content")))
        else:
            by_model = False
        stretches += by_model and not speaking
        speaking = by_model
        if SAMPLED_IDS in item:
            with_ids += item[SAMPLED_IDS] is not None
    return Contents(calls, malformed, with_ids or stretches, with_ids > 0, hash("\n".join(words)))


def num_turns(output: Sequence[Item]) -> int:
    """Number of model calls: items that carry token ids, or stretches of the model's items where none do."""
    return contents_of(output).num_turns


def arguments_are_object(arguments: object) -> bool:
    """Whether a tool call's arguments are a JSON object (or text that decodes to one)."""
    if not isinstance(arguments, str):
        return isinstance(arguments, dict)
    try:
        _OBJECT.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True


def _words(content: object) -> str:
    """Text to hash: a string, or the texts of a list of parts."""
    if not content or isinstance(content, str):
        return content if isinstance(content, str) else ""
    if not isinstance(content, list):
        return str(content)
    return "".join([_part(part) for part in cast("list[object]", content)])


def _part(part: object) -> str:
    text = cast("Item", part).get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else str(cast("object", part))

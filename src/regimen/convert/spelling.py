"""How messages and tools of a row are spelled: OpenAI's way, or the flat one that NeMo RL's guides show.

In: rows in OpenAI's spelling. Out: the row in the spelling asked for. In `nemo_rl` spelling a tool call is
`{id, name, arguments}` with the arguments as an object, and a tool `{name, description, parameters}`; call ids stay, so
that outputs still find their calls. Arguments that are no JSON object stay the text they are. Refuses nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, cast

from regimen.convert.options import Spelling

Message = dict[str, Any]


def spelled(row: dict[str, object], tools: Sequence[Message], spelling: Spelling) -> dict[str, object]:
    """`row` with its `tools` (where there are any), everything in `spelling`."""
    if tools:
        row = {**row, "tools": tools}
    return row if spelling == "openai" else cast("dict[str, object]", _flat(row))


def _flat(value: Any) -> Any:
    """A row's value with every tool call and tool in it made flat."""
    if isinstance(value, list):
        return [_flat(part) for part in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    value = cast("dict[str, Any]", value)
    if value.get("type") == "function" and "function" in value:
        return _flat_function(value)
    return {key: _flat(part) for key, part in value.items()}


def _flat_function(value: Message) -> Message:
    function: Message = value["function"]
    if "arguments" not in function:
        return function
    return {"id": value["id"], "name": function["name"], "arguments": arguments_value(function["arguments"])}


def arguments_value(text: str) -> Any:
    """Arguments as the object they are, where the object says all that the text says; else the text."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except ValueError:
        return text
    return cast("Any", value) if isinstance(value, dict) else text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("beyond a float")
    return value

"""Calls of tools, compared with the calls that are expected, by the schemas of the tools.

In: the items of an episode, the expected calls, the task's tools. Out: which expected calls were made, which calls were
not expected. Two calls are equal when their arguments are, once read by the schema: a missing argument has its
default, null is a missing one where the schema takes no null, 1 is 1.0 where a number is asked for, and nothing else
is: "1" is no 1, true is no 1. The order of calls does not matter, nor that of arguments.
Refuses, with `ToolError`, for one call: arguments that are no JSON object, that the tool does not take, that it needs
and lacks, of a wrong type or not among the values it takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from regimen.gym.environment import ToolError
from regimen.rollouts.messages import item_type

MAX_ARGUMENTS = 20_000  # characters
MAX_DEPTH = 32

Schema = Mapping[str, Any]


class Call(msgspec.Struct, frozen=True):
    """A call as the schema reads it; `arguments` is canonical JSON."""

    name: str
    arguments: str


class Comparison(msgspec.Struct, frozen=True):
    """What became of the calls of an episode."""

    num_expected: int
    num_calls: int
    num_right: int
    num_malformed: int
    has_right_names: bool


def compare(output: Sequence[dict[str, Any]], expected: Sequence[Call], tools: Mapping[str, Schema]) -> Comparison:
    """The calls in `output` against the expected ones, each of which counts once."""
    items = [item for item in output if item_type(item) == "function_call"]
    made = [_readable(item, tools) for item in items]
    left = list(expected)
    for call in made:
        if call in left:
            left.remove(call)
    names = sorted(str(item.get("name")) for item in items)
    return Comparison(
        num_expected=len(expected),
        num_calls=len(items),
        num_right=len(expected) - len(left),
        num_malformed=sum(call is None for call in made),
        has_right_names=names == sorted(call.name for call in expected),
    )


def _readable(item: dict[str, Any], tools: Mapping[str, Schema]) -> Call | None:
    try:
        return read_call(item.get("name"), arguments_of(item.get("arguments")), tools)
    except ToolError:
        return None


def arguments_of(text: object) -> object:
    """The arguments of a call from their JSON text. Names that stand twice, NaN and too long texts are no arguments."""
    if not isinstance(text, str) or len(text) > MAX_ARGUMENTS:
        raise ToolError("Error: the arguments are no JSON text, or too long")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ToolError("Error: the arguments are not JSON") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def read_call(name: object, arguments: object, tools: Mapping[str, Schema]) -> Call:
    """The call of a known tool as its schema reads it."""
    if not isinstance(name, str) or name not in tools:
        raise ToolError(f"Error: unknown tool {str(name)[:80]!r}; use {', '.join(tools) or 'none'}")
    read = _read(arguments, {**tools[name], "type": "object"}, name, 0)
    return Call(name, json.dumps(read, sort_keys=True))


def _read(value: object, schema: Schema, where: str, depth: int) -> Any:
    """`value` as the schema has it: defaults filled in, numbers in one spelling."""
    if depth > MAX_DEPTH:
        raise ToolError(f"Error: {where[:80]} is nested too deep")
    kinds: Any = schema.get("type")
    allowed = cast("list[Any]", kinds if isinstance(kinds, list) else [kinds])
    read = _typed(value, _kind_of(value, allowed, where), schema, where, depth)
    values = schema.get("enum")
    if values is not None and _spelled(read) not in [_spelled(choice) for choice in values]:
        raise ToolError(f"Error: {where} must be one of {json.dumps(values)}")
    return read


def _kind_of(value: Any, allowed: list[Any], where: str) -> str:
    """The type of the schema that `value` has."""
    if isinstance(value, bool) or value is None:
        kind = "null" if value is None else "boolean"
    elif isinstance(value, int | float):
        whole = isinstance(value, int) or (math.isfinite(value) and value.is_integer())
        kind = "integer" if whole and "number" not in allowed else "number"
    else:
        kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    if kind not in allowed and allowed != [None]:
        raise ToolError(f"Error: {where[:80]} must be of type {' or '.join(map(str, allowed))}")
    return kind


def _typed(value: Any, kind: str, schema: Schema, where: str, depth: int) -> Any:
    if kind == "object":
        return _object(value, schema, where, depth)
    if kind == "array":
        items: Schema = schema.get("items") or {}
        read = [_read(item, items, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        return sorted(read, key=_spelled) if schema.get("uniqueItems") else read
    if kind in ("integer", "number"):
        if isinstance(value, float) and not math.isfinite(value):
            raise ToolError(f"Error: {where} is no number")
        return int(value) if value == int(value) else value
    return value


def _object(value: dict[str, Any], schema: Schema, where: str, depth: int) -> dict[str, Any]:
    """The arguments that are given, and the defaults of those that are not."""
    properties: dict[str, Schema] = schema.get("properties") or {}
    open_schema = schema.get("additionalProperties", not properties and depth > 0)
    read: dict[str, Any] = {}
    for name, given in value.items():
        if name not in properties and not open_schema:
            raise ToolError(f"Error: {where} takes no {name[:80]!r}; it takes {', '.join(properties) or 'nothing'}")
        inner = properties.get(name) or (cast("Schema", open_schema) if isinstance(open_schema, dict) else {})
        if given is None and name in properties and not _takes_null(inner):
            continue
        read[name] = _read(given, inner, f"{where}.{name[:80]}", depth + 1)
    for name, inner in properties.items():
        if name in read:
            continue
        if "default" in inner:
            read[name] = _read(inner["default"], inner, f"{where}.{name}", depth + 1)
        elif name in schema.get("required", []):
            raise ToolError(f"Error: {where} needs {name!r}")
    return read


def _takes_null(schema: Schema) -> bool:
    kinds = schema.get("type")
    return kinds is None or kinds == "null" or (isinstance(kinds, list) and "null" in kinds)


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True)

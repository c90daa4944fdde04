"""Training rows as they are read and written for other trainers.

In: JSON lines of ours or of the guides' scripts. Out: rows in OpenAI's chat spelling, arguments of tool calls as
objects; what a columnar loader would make of them.
Refuses, with the line: text that is no JSON object, fields that are not there, messages without a role.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from regimen.errors import ConvertError, RolloutError, UsageError
from regimen.rollouts import messages as chat

Row = dict[str, Any]
Message = dict[str, Any]
# What Arrow's JSON reader takes for a point in time.
DATE = re.compile(r"^\d{4}-\d\d-\d\d([ T]\d\d(:?\d\d(:?\d\d(\.\d{1,9})?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?$")


def read_rows(path: Path, limit: int | None = None) -> Iterator[tuple[str, Row]]:
    """The first `limit` rows of a file of JSON lines, each with its place; blank lines are nothing."""
    count = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and count >= limit:
                    return
                if line.strip():
                    count += 1
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise ConvertError(f"is not UTF-8 ({error.reason})", where=str(path), expected="JSON lines") from error
    if not count:
        raise UsageError("the file holds no row", where=str(path), fix="convert again, or name another file")


def _object(line: str, where: str) -> Row:
    try:
        row: object = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConvertError(f"not JSON ({error})", where=where, expected="one JSON object per line") from None
    if not isinstance(row, dict):
        raise ConvertError("not a JSON object", where=where, expected="one JSON object per line")
    return cast("Row", row)


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write JSON lines in ASCII, which any locale reads, without blank lines; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="ascii", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


def field_of(row: Row, key: str, where: str) -> Any:
    """The value of a field that must be there."""
    if key not in row:
        raise ConvertError(f"has no field {key!r}", where=where, expected=f"one of {', '.join(row)} in the data keys")
    return row[key]


def chat_messages(value: object, where: str, tally: Counter[str]) -> list[Message]:
    """Messages in OpenAI's spelling: nested tool calls, arguments as objects, a text in every content."""
    if not isinstance(value, list) or not value:
        raise ConvertError("the messages are not a list with something in it", where=where)
    return [_message(item, where, tally) for item in cast("list[object]", value)]


def _message(value: object, where: str, tally: Counter[str]) -> Message:
    if not isinstance(value, dict) or not isinstance(cast("Message", value).get("role"), str):
        raise ConvertError("a message is no object with a role", where=where)
    message = {key: item for key, item in cast("Message", value).items() if item is not None}
    calls = message.pop("tool_calls", None)
    message.setdefault("content", "")
    if calls:
        message["tool_calls"] = [_call(call, where, tally) for call in calls]
    return message


def _call(value: object, where: str, tally: Counter[str]) -> Row:
    call = cast("Row", value) if isinstance(value, dict) else {}
    nested = call.get("function")
    function = dict(cast("Row", nested)) if isinstance(nested, dict) else call
    if not isinstance(function.get("name"), str):
        raise ConvertError("a tool call has no name", where=where, expected="function: {name, arguments}")
    tally["flat_calls"] += function is call
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        parsed = _parsed(arguments)
        tally["text_arguments" if parsed is None else "parsed_arguments"] += 1
        arguments = arguments if parsed is None else parsed
    result: Row = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **result} if call.get("id") is not None else result


def _parsed(text: str) -> Row | None:
    try:
        value: object = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return cast("Row", value) if isinstance(value, dict) else None


def with_text_arguments(messages: Iterable[Message]) -> list[Message]:
    """The messages with the arguments of every tool call as JSON text."""
    result: list[Message] = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": _text(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        result.append({**message, "tool_calls": calls} if calls else message)
    return result


def _text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def chat_tools(value: object, where: str) -> list[Row]:
    """Tools in OpenAI's spelling, from that, from Responses' or from the guides' `{name, description, parameters}`."""
    try:
        return chat.chat_tools({"tools": value})
    except RolloutError as error:
        raise ConvertError(error.message, where=f"{where}, {error.where}", expected=error.expected) from None


def message_notes(tally: Counter[str]) -> list[str]:
    """What was spelled otherwise in messages."""
    said = {
        "flat_calls": "tool calls {name, arguments} are written as {type, function: {name, arguments}}",
        "parsed_arguments": "arguments of tool calls, which were JSON text, are written as objects for the template",
        "text_arguments": "arguments of tool calls are no JSON object and stay text",
    }
    return [f"{tally[key]} {text}" for key, text in said.items() if tally[key]]


@dataclass
class ColumnShape:
    """What a columnar loader makes of values: one type per column, and null for every field that is absent."""

    kinds: set[str] = field(default_factory=lambda: set[str]())
    fields: dict[str, ColumnShape] = field(default_factory=lambda: dict[str, ColumnShape]())
    counts: Counter[str] = field(default_factory=lambda: Counter[str]())

    def see(self, value: object) -> None:
        """Take a value of the column into account."""
        if value is None:
            return
        kind = _kind(value)
        self.kinds.add(kind)
        self.counts[kind] += 1
        if isinstance(value, dict):
            for key, item in cast("Row", value).items():
                self.counts[f".{key}"] += 1
                self.fields.setdefault(f".{key}", ColumnShape()).see(item)
        elif isinstance(value, list):
            for item in cast("list[object]", value):
                self.fields.setdefault("[]", ColumnShape()).see(item)

    def conflict(self, path: str = "") -> str | None:
        """A column that no single type fits, or that is read as a time; None where there is none."""
        kinds = self.kinds - {"date"} if "text" in self.kinds else self.kinds
        if len(kinds) > 1:
            return f"{path.lstrip('.')} holds {' and '.join(sorted(kinds))}"
        if kinds == {"date"}:
            return f"{path.lstrip('.')} holds dates only, which are loaded as points in time"
        below = (shape.conflict(path + key) for key, shape in self.fields.items())
        return next((found for found in below if found), None)

    def is_kept(self) -> bool:
        """Whether the loader gives every value back as it was."""
        if self.conflict() is not None or (self.counts["object"] and not self.fields):
            return False
        complete = all(key == "[]" or self.counts[key] == self.counts["object"] for key in self.fields)
        return complete and all(shape.is_kept() for shape in self.fields.values())


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "date" if DATE.match(value) else "text"
    names = {bool: "truth", int: "whole", float: "number", list: "list", dict: "object"}
    return names.get(cast("type[Any]", type(value)), "other")

"""Calls compared by the schemas of the tools, case by case."""

from __future__ import annotations

import json
from typing import Any

import pytest

from regimen.gym.environment import ToolError
from regimen.gym.environments.tool_choice.compare import arguments_of, compare, read_call

TOOLS: dict[str, Any] = {
    "book": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "price": {"type": "number"},
            "class": {"type": "string", "enum": ["first", "second"], "default": "second"},
            "breakfast": {"type": "boolean", "default": False},
            "guests": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            "stops": {"type": "array", "items": {"type": "string"}},
            "card": {
                "type": "object",
                "properties": {"number": {"type": "integer"}, "kind": {"type": "string", "default": "blue"}},
                "required": ["number"],
            },
            "note": {"type": ["string", "null"]},
        },
        "required": ["city"],
    },
    "free": {"type": "object", "properties": {"data": {"type": "object", "additionalProperties": True}}},
}


def read(arguments: Any, name: str = "book") -> str:
    return read_call(name, arguments, TOOLS).arguments


@pytest.mark.parametrize(
    "given",
    [
        {"city": "Rome", "nights": 2.0},
        {"nights": 2, "city": "Rome", "class": "second"},
        {"city": "Rome", "nights": 2, "breakfast": False, "class": None},
    ],
)
def test_what_is_equal(given: dict[str, Any]) -> None:
    assert read(given) == read({"city": "Rome", "nights": 2})


EQUAL = [
    ({"price": 5}, {"price": 5.0}),
    ({"guests": ["a", "b"]}, {"guests": ["b", "a"]}),
    ({"card": {"number": 7}}, {"card": {"kind": "blue", "number": 7.0}}),
]
DIFFERENT = [
    ({}, {"nights": 2}),
    ({"price": 5}, {"price": 5.5}),
    ({"class": "first"}, {}),
    ({"breakfast": True}, {}),
    ({"stops": ["a", "b"]}, {"stops": ["b", "a"]}),
    ({"guests": ["a"]}, {"guests": ["a", "a"]}),
    ({"card": {"number": 7, "kind": "red"}}, {"card": {"number": 7}}),
    ({"note": None}, {}),
    ({"note": "Rome"}, {"note": "rome"}),
]


@pytest.mark.parametrize("one, other", EQUAL)
def test_equal_by_the_schema(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert read({"city": "Rome", **one}) == read({"city": "Rome", **other})


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_different_by_the_schema(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert read({"city": "Rome", **one}) != read({"city": "Rome", **other})


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({}, "needs 'city'"),
        ({"city": None}, "needs 'city'"),
        ({"city": 5}, "city must be of type string"),
        ({"city": "Rome", "town": "Rome"}, "takes no 'town'"),
        ({"city": "Rome", "nights": "2"}, "nights must be of type integer"),
        ({"city": "Rome", "nights": 2.5}, "nights must be of type integer"),
        ({"city": "Rome", "nights": True}, "nights must be of type integer"),
        ({"city": "Rome", "price": False}, "price must be of type number"),
        ({"city": "Rome", "price": float("inf")}, "price is no number"),
        ({"city": "Rome", "breakfast": 1}, "breakfast must be of type boolean"),
        ({"city": "Rome", "breakfast": "true"}, "breakfast must be of type boolean"),
        ({"city": "Rome", "class": "First"}, "class must be one of"),
        ({"city": "Rome", "guests": "a"}, "guests must be of type array"),
        ({"city": "Rome", "guests": [1]}, r"guests\[0\] must be of type string"),
        ({"city": "Rome", "card": {}}, "card needs 'number'"),
        ({"city": "Rome", "card": {"number": 1, "pin": 2}}, "card takes no 'pin'"),
        (["Rome"], "book must be of type object"),
        ("Rome", "book must be of type object"),
        (None, "book must be of type object"),
    ],
)
def test_what_no_tool_takes(arguments: Any, text: str) -> None:
    with pytest.raises(ToolError, match=text):
        read(arguments)


def test_open_schemas_compare_as_json() -> None:
    assert read({"data": {"a": [1, {"b": None}]}}, "free") == read({"data": {"a": [1.0, {"b": None}]}}, "free")
    assert read({"data": {"a": 1}}, "free") != read({"data": {"a": True}}, "free")
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(ToolError, match="nested too deep"):
        read({"data": deep}, "free")


@pytest.mark.parametrize("name", ["", "Book", "bok", None, 7, ["book"]])
def test_unknown_tools(name: Any) -> None:
    with pytest.raises(ToolError, match="unknown tool"):
        read_call(name, {"city": "Rome"}, TOOLS)


@pytest.mark.parametrize(
    "text",
    [
        None, 7, {"city": "Rome"}, "", "{", "{'city': 'Rome'}", '{"city": "Rome"} {}', '{"price": NaN}',
        '{"city": "Rome", "city": "Oslo"}', '{"a":' * 5000 + "1" + "}" * 5000, '{"city": "' + "x" * 20_000 + '"}',
        '{"nights": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_what_are_no_arguments(text: Any) -> None:
    with pytest.raises(ToolError):
        arguments_of(text)


def call(city: str, **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "name": "book", "arguments": json.dumps({"city": city, **more}), "call_id": "c"}


def test_each_expected_call_counts_once() -> None:
    expected = [read_call("book", {"city": city}, TOOLS) for city in ("Rome", "Oslo", "Oslo")]
    found = compare([call("Oslo"), call("Oslo"), call("Oslo"), call("Rome", town=1)], expected, TOOLS)
    assert (found.num_expected, found.num_calls, found.num_right, found.num_malformed) == (3, 4, 2, 1)
    assert not found.has_right_names
    found = compare([call("Oslo"), call("Rome"), call("Oslo")], expected, TOOLS)
    assert found.num_right == found.num_calls == 3
    assert found.has_right_names

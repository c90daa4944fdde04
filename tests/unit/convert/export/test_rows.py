import json
from collections import Counter

import pytest

from regimen.convert.export.rows import ColumnShape, chat_messages, chat_tools, read_rows, write_rows
from regimen.errors import ConvertError, UsageError


def shape_of(*values):
    shape = ColumnShape()
    for value in values:
        shape.see(value)
    return shape


@pytest.mark.parametrize(
    "values",
    [
        [{"a": 1}, {"a": 2}],
        [{"a": None}, {"a": "x"}],
        [{"a": [{"b": "x"}]}, {"a": []}],
        [{"a": "2024-01-01"}, {"a": "soon"}],
    ],
)
def test_columns_that_are_kept(values):
    assert shape_of(*values).is_kept()


@pytest.mark.parametrize(
    "values",
    [
        [{"a": 1}, {"b": 1}],
        [{"a": 1}, {"a": 1.5}],
        [{"a": {}}],
        [{"a": [{"b": 1}, {"c": 1}]}],
        [{"a": "2024-01-01"}, {"a": "2024-01-02T10:00"}],
    ],
)
def test_columns_that_are_not_kept(values):
    assert not shape_of(*values).is_kept()


def test_a_conflict_names_its_column():
    assert shape_of({"a": [{"b": "x"}]}, {"a": [{"b": ["x"]}]}).conflict() == "a[].b holds list and text"


def test_messages_of_the_guides_and_of_ours_are_spelled_alike():
    tally = Counter()
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    nested = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    expected = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    ours = {"role": "assistant", "content": None, "tool_calls": [nested]}
    assert chat_messages([flat, ours], "here", tally) == [expected, expected]
    assert (tally["flat_calls"], tally["parsed_arguments"], tally["text_arguments"]) == (1, 1, 0)


def test_arguments_that_are_no_object_stay_text_and_are_counted():
    tally = Counter()
    call = {"type": "function", "function": {"name": "f", "arguments": "{x"}}
    (message,) = chat_messages([{"role": "assistant", "tool_calls": [call]}], "here", tally)
    assert message["tool_calls"][0]["function"]["arguments"] == "{x"
    assert tally["text_arguments"] == 1


@pytest.mark.parametrize("value", ["text", [], [{"content": "x"}], [{"role": "assistant", "tool_calls": [{}]}]])
def test_what_is_no_conversation_is_refused_with_its_place(value):
    with pytest.raises(ConvertError, match=r"rows\.jsonl:3"):
        chat_messages(value, "rows.jsonl:3", Counter())


def test_a_tool_without_a_name_is_refused_with_its_place():
    with pytest.raises(ConvertError, match=r"rows\.jsonl:3, tools\[0\]"):
        chat_tools([{"type": "function"}], "rows.jsonl:3")


def test_rows_survive_writing_and_blank_lines_do_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "é\u2028"}\n\n{"a": "b"}\n', encoding="utf-8")
    rows = [row for _, row in read_rows(path)]
    assert write_rows(tmp_path / "out.jsonl", rows) == 2
    text = (tmp_path / "out.jsonl").read_bytes()
    assert [json.loads(line) for line in text.split(b"\n")[:-1]] == [{"a": "é\u2028"}, {"a": "b"}]
    assert text.isascii()


@pytest.mark.parametrize(("text", "error"), [("\n", UsageError), ("[1]\n", ConvertError), ("{x\n", ConvertError)])
def test_files_without_rows_are_refused(tmp_path, text, error):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=r"rows\.jsonl"):
        list(read_rows(path))

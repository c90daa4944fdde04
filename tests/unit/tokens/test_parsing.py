from __future__ import annotations

import json

import pytest

from regimen.tokens.parsing import parse_assistant_text

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def functions(message: dict) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


def test_plain_text() -> None:
    assert parse_assistant_text("  4\n") == {"role": "assistant", "content": "4", "malformed_calls": 0}


def test_reasoning_text_and_calls() -> None:
    message = parse_assistant_text(f"<think>sum</think>Let me see. {CALL}{CALL} done")
    assert message["reasoning_content"] == "sum"
    assert message["content"] == "Let me see.  done"
    assert functions(message) == [("add", '{"a": 1}')] * 2
    first, second = (call["id"] for call in message["tool_calls"])
    assert first != second  # the same call twice is two calls
    assert message["malformed_calls"] == 0


def test_a_list_of_calls() -> None:
    text = '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"é": "ü"}}]</tool_call>'
    assert functions(parse_assistant_text(text)) == [("f", "{}"), ("g", '{"é": "ü"}')]


@pytest.mark.parametrize(
    "inside",
    [
        "not json",
        "{}",
        "[]",
        "3",
        '{"name": "f"}',
        '{"name": "", "arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"name": "f", "arguments": "{}"}',
        '[{"name": "f", "arguments": {}}, 3]',
        '{"name": "f", "arguments": {"a": ' + "1" * 5000 + "}}",  # Python refuses to read such a number
        '{"name": "f", "arguments": {"a": "\\ud83d"}}',  # half a character cannot be written to a file
        '{"name": "f", "arguments": {"a": NaN}}',  # not JSON, and no other program reads it
        "[" * 100_000,
    ],
)
def test_a_malformed_call_stays_text_and_is_counted(inside: str) -> None:
    text = f"a <tool_call>{inside}</tool_call> b"
    message = parse_assistant_text(text)
    assert message["content"] == text
    assert message["malformed_calls"] == 1
    assert "tool_calls" not in message


def test_an_unclosed_call_is_malformed_and_a_good_one_beside_it_counts() -> None:
    message = parse_assistant_text(f'{CALL} then <tool_call>{{"name": "f", "argum')
    assert functions(message) == [("add", '{"a": 1}')]
    assert message["content"] == 'then <tool_call>{"name": "f", "argum'
    assert message["malformed_calls"] == 1


def test_reasoning_must_come_first_and_be_closed() -> None:
    for text in ("so <think>x</think>", "<think>x"):
        message = parse_assistant_text(text)
        assert message["content"] == text
        assert "reasoning_content" not in message


def test_arguments_are_json() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": [1, 2.5, null, true], "b": {"c": "\\n"}}}</tool_call>'
    [(_, arguments)] = functions(parse_assistant_text(text))
    assert json.loads(arguments) == {"a": [1, 2.5, None, True], "b": {"c": "\n"}}

import pytest

from regimen.convert.spelling import arguments_value, spelled

PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": PARAMETERS}}


def _call(arguments):
    return {"id": "k", "type": "function", "function": {"name": "f", "arguments": arguments}}


def test_the_flat_spelling_of_the_guides():
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [_call('{"x": 1}')]}]}
    assert spelled(row, [TOOL], "nemo_rl") == {
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [{"id": "k", "name": "f", "arguments": {"x": 1}}]}
        ],
        "tools": [{"name": "f", "description": "d", "parameters": PARAMETERS}],
    }
    assert spelled(row, [TOOL], "openai") == {**row, "tools": [TOOL]}
    assert spelled(row, [], "nemo_rl").keys() == {"messages"}


def test_pairs_are_spelled_throughout():
    answer = [{"role": "assistant", "content": "", "tool_calls": [_call("{}")]}]
    row = {"context": answer, "completions": [{"rank": 0, "completion": answer}]}
    flat = [{"role": "assistant", "content": "", "tool_calls": [{"id": "k", "name": "f", "arguments": {}}]}]
    assert spelled(row, [], "nemo_rl") == {"context": flat, "completions": [{"rank": 0, "completion": flat}]}


@pytest.mark.parametrize("text", ["", "[1]", '{"x": ', '{"x": 1, "x": 2}', '{"x": NaN}', '{"x": 1e999}', '"x"'])
def test_arguments_that_an_object_would_change_stay_text(text):
    assert arguments_value(text) == text


def test_arguments_become_objects_of_any_depth():
    assert arguments_value(' {"x": {"y": [1, 2.5, "é"]}} ') == {"x": {"y": [1, 2.5, "é"]}}

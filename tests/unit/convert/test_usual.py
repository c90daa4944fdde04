"""The quick way for rows of the usual shape says what the general way says, and knows which rows are not usual."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from regimen.convert.episodes import episode_of, episode_told
from regimen.errors import RolloutError
from regimen.rollouts.index import RolloutIndex
from regimen.rollouts.messages import output_messages
from regimen.rollouts.usual import Teller

TEXTS = st.sampled_from(["", "a", "b\nc", "7 – sieben", "\u2028\U0001f600", '{"a": 1}'])
PARTS = st.fixed_dictionaries(
    {"text": TEXTS},
    optional={
        "type": st.sampled_from(["output_text", "input_text", "text", "summary_text", "reasoning_text", "json", None]),
        "annotations": st.just([]),
        "refusal": st.sampled_from([None, "no"]),
    },
)
ODD_PARTS = st.sampled_from(
    ["a", None, 1, {"refusal": "no"}, {"type": "refusal", "refusal": "no"}, {"image_url": "http://a/b"}]
)
CONTENTS = st.one_of(
    TEXTS, st.none(), st.lists(PARTS, max_size=3), st.lists(st.one_of(PARTS, ODD_PARTS), max_size=3), st.just(3)
)
IDS = st.sampled_from(["c1", "c2", "", None, 7])
TOKENS = {"prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [-0.5]}
ITEMS = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("reasoning")},
        optional={
            "content": CONTENTS,
            "summary": CONTENTS,
            "encrypted_content": st.sampled_from([None, "", "x"]),
        },
    ),
    st.fixed_dictionaries(
        {"role": st.sampled_from(["assistant", "assistant", "assistant", "user", "developer", "tool", None])},
        optional={
            "type": st.sampled_from(["message", "message", None]),
            "content": CONTENTS,
            "reasoning_content": st.sampled_from([None, "hm"]),
            "refusal": st.sampled_from([None, "no"]),
            "tool_calls": st.sampled_from([None, [], [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]]),
            "tool_call_id": IDS,
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("function_call")},
        optional={
            "name": st.sampled_from(["f", "g", "", None, 1]),
            "call_id": IDS,
            "id": IDS,
            "arguments": st.sampled_from(["{}", "{", None, {"a": 1}]),
            "role": st.just("developer"),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("function_call_output"), "output": st.one_of(TEXTS, CONTENTS)},
        optional={"call_id": IDS, "name": st.just("h")},
    ),
    st.sampled_from([{"type": "web_search_call"}, {}, {"type": None, "arguments": "{}", "name": "f"}]),
)
OUTPUTS = st.lists(
    st.one_of(ITEMS, st.tuples(ITEMS, st.just(TOKENS)).map(lambda two: {**two[0], **two[1]})), max_size=6
)

THOUGHT = {"type": "reasoning", "content": None, "summary": [{"type": "summary_text", "text": "hm"}], "id": "r"}
CALL = {"type": "function_call", "name": "add", "arguments": '{"a": 3}', "call_id": "c1", "id": "f"}
BACK = {"type": "function_call_output", "call_id": "c1", "output": "7"}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "seven"}]}
ASKED = {"instructions": "Add.", "input": [{"role": "developer", "content": "3 + 4?"}]}


def row_of(output, **fields):
    return {"responses_create_params": ASKED, "response": {"output": output}, "reward": 1.0, **fields}


def line_of(output, **fields):
    return json.dumps(row_of(output, **fields)).encode()


@settings(max_examples=1500, deadline=None)
@given(OUTPUTS)
def test_what_is_told_is_what_the_general_way_says(output):
    told = Teller().told_of(line_of(output))
    if told is not None:
        general = output_messages(output)
        assert told.completion == general
        # Rows are written with their keys in this order.
        assert msgspec.json.encode(told.completion) == msgspec.json.encode(general)


@settings(max_examples=150, deadline=None)
@given(output=OUTPUTS, stamp=st.sampled_from([None, {}, {"tokenizer": "t", "template": 3}]))
def test_episodes_are_the_same(tmp_path_factory, output, stamp):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(line_of([SAID]) + b"\n" + line_of(output, regimen=stamp) + b"\n")
    with RolloutIndex.build(path, max_bad=1.0) as index, index.open() as reader:
        for row in index.rows():
            found = reader.told(row)
            if found is not None:
                told, said = episode_told(*found, row), episode_of(reader.said(row))
                assert told.asked is not None
                assert said.asked is not None
                assert {name: said.asked.params.get(name) for name in told.asked.params} == told.asked.params
                assert replace(told, asked=None) == replace(said, asked=None)


def test_a_usual_row_is_told():
    told = Teller().told_of(line_of([THOUGHT, CALL, BACK, SAID, SAID], regimen={"tokenizer": "t"}))
    assert told is not None
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3}'}}
    assert told.completion == [
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "7"},
        {"role": "assistant", "content": "seven"},
        {"role": "assistant", "content": "seven"},
    ]
    assert told.stamp == {"tokenizer": "t"}
    assert {name: json.loads(bytes(getattr(told.request, name))) for name in told.request.__struct_fields__} == {
        "instructions": ASKED.get("instructions"),
        "input": ASKED["input"],
        "tools": ASKED.get("tools"),
    }


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([THOUGHT, CALL, BACK, SAID]), max_size=8))
def test_every_order_of_usual_items_is_told(output):
    told = Teller().told_of(line_of(output))
    assert told is not None
    assert told.completion == output_messages(output)


def test_reasoning_after_text_and_a_call_is_of_the_same_model_call():
    told = Teller().told_of(line_of([SAID, CALL, THOUGHT]))
    assert told is not None
    (answer,) = told.completion
    assert (answer["content"], answer["reasoning_content"], len(answer["tool_calls"])) == ("seven", "hm", 1)


@pytest.mark.parametrize(
    "item",
    [
        {**SAID, **TOKENS},
        {**SAID, "generation_token_ids": [2]},
        {**SAID, "prompt_token_ids": [1]},
        {**SAID, "generation_log_probs": [-0.5]},
        {**SAID, "refusal": "no"},
        {**SAID, "content": [{"type": "refusal", "refusal": "no"}]},
        {**SAID, "content": [{"type": "input_image", "image_url": "http://a/b"}]},
        {**SAID, "role": "user"},
        {**SAID, "role": "developer"},
        {**THOUGHT, "encrypted_content": "x"},
        {**CALL, "arguments": {"a": 3}},
        {**BACK, "output": [{"text": "7"}]},
        {"type": "web_search_call"},
    ],
)
def test_other_rows_are_not(item):
    assert Teller().told_of(line_of([CALL, item])) is None


def test_lines_that_are_no_rows_are_not_told():
    for line in (b"", b"[]", b"{", b'{"responses_create_params": {}}', b'{"response": {"output": []}}', b"\xff"):
        assert Teller().told_of(line) is None


def test_a_refused_row_is_never_told():
    refused = [{"type": "function_call", "arguments": "{}", "call_id": "c1"}]
    with pytest.raises(RolloutError, match="no name"):
        output_messages(refused)
    assert Teller().told_of(line_of(refused)) is None


def test_repeats_that_begin_alike_are_told_as_they_are_alone():
    """Their request is read once; what comes after it, a second request too, is judged as in any other row."""
    teller = Teller()
    again = line_of([SAID])[:-1] + b', "responses_create_params": {"input": "8?"}}'
    lines = [line_of([SAID]), line_of([CALL, BACK, SAID], regimen={"tokenizer": "t"}), again, line_of([{}])]
    lines += [line_of([SAID])[:-1], b" " + line_of([SAID]), line_of([SAID]).replace(b"3 + 4", b"3 + 5"), lines[1]]
    for line in lines:
        told, alone = teller.told_of(line), Teller().told_of(line)
        if line is again:  # the last one counts, as in all JSON; such a row goes the general way
            assert told is None
            continue
        assert (told is None) == (alone is None)
        if told is not None and alone is not None:
            assert (told.completion, told.stamp) == (alone.completion, alone.stamp)
            assert bytes(told.request.input) == bytes(alone.request.input)

"""Whatever an episode holds, its chat messages rendered back are the same in normal form."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.convert.episodes import episode_of, with_reasoning, without_trailing_observations
from regimen.convert.normal import View, model_calls, normal_form, normal_output, normal_prompt, normal_tools
from regimen.convert.render import render_messages, render_tools
from regimen.errors import ConvertError
from regimen.rollouts.records import Source, rollout_from_row

KEPT = View()
TEXT = st.text(alphabet="ab<>\n é\u2028\ud800", max_size=6)
NULLS = {"status": "completed", "id": "x1", "phase": None}
URLS = st.sampled_from(["https://a/b.png", "data:image/png;base64,AA=="])


@st.composite
def images(draw):
    url, detail = draw(URLS), draw(st.sampled_from([None, "low"]))
    if draw(st.booleans()):
        return {"type": "input_image", "image_url": url, "detail": detail}
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}


def parts(text_type, *others):
    text = st.builds(lambda text: {"type": text_type, "text": text, "annotations": [], "logprobs": None}, TEXT)
    return st.lists(st.one_of(text, *others), max_size=3)


def contents(text_type, *others):
    return st.one_of(TEXT, st.none(), parts(text_type, *others))


REFUSALS = st.builds(lambda text: {"type": "refusal", "refusal": text}, TEXT)
CALL_IDS = st.sampled_from(["a", "b", "call_1", None, 7])
ARGUMENTS = st.sampled_from(['{"x":  1}', '{"x": ', "", '{"b": 1, "a": 2}', None, {"y": [1, "é"]}])


def messages(role, content):
    return st.builds(lambda content: {"type": "message", "role": role, "content": content, **NULLS}, content)


REASONING = st.builds(
    lambda summary, content: {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text} for text in summary],
        "content": content and [{"type": "reasoning_text", "text": text} for text in content],
        "encrypted_content": "gAAA",
        **NULLS,
    },
    st.lists(TEXT, max_size=2),
    st.one_of(st.none(), st.lists(TEXT, max_size=2)),
)
CALLS = st.builds(
    lambda call_id, arguments: {
        "type": "function_call",
        "call_id": call_id,
        "name": "f",
        "arguments": arguments,
        "status": "completed",
    },
    CALL_IDS,
    ARGUMENTS,
)
OUTPUTS = st.builds(
    lambda call_id, output: {"type": "function_call_output", "call_id": call_id, "output": output},
    CALL_IDS,
    st.one_of(
        contents("input_text", images()),
        st.sampled_from([{"x": "é"}, [1], [{"text": "t", "score": 2}], 3, [{"text": "t"}], []]),
    ),
)
CHAT_ANSWERS = st.builds(
    lambda content, thought, refusal, calls: {
        "role": "assistant",
        "content": content,
        "reasoning_content": thought,
        "refusal": refusal,
        "tool_calls": calls,
    },
    contents("text"),
    st.one_of(st.none(), TEXT),
    st.one_of(st.none(), TEXT),
    st.one_of(
        st.none(),
        st.lists(
            st.builds(
                lambda call_id, arguments: {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": "g", "arguments": arguments},
                },
                CALL_IDS,
                ARGUMENTS,
            ),
            max_size=2,
        ),
    ),
)
CHAT_OUTPUTS = st.builds(
    lambda call_id, content: {"role": "tool", "tool_call_id": call_id, "name": "g", "content": content},
    CALL_IDS,
    contents("text"),
)
ITEMS = st.one_of(
    messages("assistant", contents("output_text", REFUSALS, images())),
    messages("user", contents("input_text", images())),
    messages("developer", contents("input_text")),
    messages("system", contents("input_text")),
    REASONING,
    CALLS,
    OUTPUTS,
    CHAT_ANSWERS,
    CHAT_OUTPUTS,
)
TOKENS = {"prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [-0.5]}


@st.composite
def rollouts(draw):
    output = draw(st.lists(ITEMS, max_size=7))
    with_ids = draw(st.sets(st.integers(0, 6), max_size=3))
    output = [
        {**item, **TOKENS} if index in with_ids and item.get("role") not in ("user", "system", "developer") else item
        for index, item in enumerate(output)
    ]
    tools = [{"type": "function", "name": "f", "parameters": draw(st.sampled_from([None, {"type": "object"}]))}]
    params = {
        "instructions": draw(st.one_of(st.none(), TEXT)),
        "input": draw(st.one_of(TEXT, st.lists(ITEMS, max_size=5))),
        "tools": draw(st.sampled_from([None, [], tools])),
    }
    row = {"responses_create_params": params, "response": {"output": output}, "reward": 1.0}
    return rollout_from_row(row, Source("r", 1))


@settings(deadline=None, max_examples=500)
@given(rollouts(), st.sampled_from(["reasoning_content", "inline", "drop"]))
def test_an_episode_rendered_back_equals_the_original(rollout, reasoning):
    view = View(reasoning=reasoning)
    episode = without_trailing_observations(with_reasoning(episode_of(rollout), reasoning))
    written = json.loads(json.dumps({"prompt": episode.prompt, "completion": episode.completion}))
    assert normal_form(render_messages(written["prompt"]), KEPT) == normal_prompt(rollout.params, view)
    assert normal_form(render_messages(written["completion"]), KEPT) == normal_output(rollout.output, view)
    assert normal_tools(render_tools(episode.tools)) == normal_tools(rollout.params["tools"])


def said(role, text):
    return {"role": role, "content": [text] if text else []}


def answer(text="", reasoning="", refusal="", calls=()):
    content = [text] if text else []
    return {"role": "assistant", "reasoning": reasoning, "content": content, "refusal": refusal, "calls": list(calls)}


def test_the_normal_form_of_an_episode_by_hand():
    params = {"instructions": "s", "input": [{"role": "developer", "content": [{"type": "input_text", "text": "d"}]}]}
    output = [
        {"type": "reasoning", "summary": [{"text": "one"}, {"text": "two"}]},
        {"type": "function_call", "call_id": "k", "name": "f", "arguments": "{}", "id": "fc"},
        {"type": "function_call_output", "call_id": "k", "output": {"x": 1}},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "message", "role": "user", "content": "The end."},
    ]
    assert normal_prompt(params, KEPT) == [said("system", "s"), said("system", "d")]
    assert normal_output(output, KEPT) == [
        answer(reasoning="one\ntwo", calls=[{"call_id": "k", "name": "f", "arguments": "{}"}]),
        {"role": "tool", "call_id": "k", "content": ['{"x": 1}']},
        answer(refusal="No."),
    ]


def test_reasoning_is_compared_as_it_was_written():
    output = [{"type": "reasoning", "content": [{"text": "Hm."}], "summary": []}, {"role": "assistant", "content": "a"}]
    assert normal_output(output, View(reasoning="inline")) == [answer("<think>\nHm.\n</think>\n\na")]
    assert normal_output(output, View(reasoning="drop")) == [answer("a")]


def test_arguments_as_values_forget_spaces_and_nothing_else():
    def call(arguments):
        return [{"type": "function_call", "call_id": "k", "name": "f", "arguments": arguments}]

    values = View(argument_values=True)
    assert normal_output(call('{"a":  1}'), values) == normal_output(call({"a": 1}), values)
    assert normal_output(call('{"a":  1}'), KEPT) != normal_output(call('{"a": 1}'), KEPT)
    assert normal_output(call('{"a": '), values) == [
        answer(calls=[{"call_id": "k", "name": "f", "arguments": '{"a": '}])
    ]


CHANGES = {
    "text": lambda m: m[2].update(content="other"),
    "reasoning": lambda m: m[0].pop("reasoning_content"),
    "call id": lambda m: m[0]["tool_calls"][0].update(id="z"),
    "call order": lambda m: m[0]["tool_calls"].reverse(),
    "arguments": lambda m: m[0]["tool_calls"][1]["function"].update(arguments="{ }"),
    "output": lambda m: m[1].update(content=""),
    "output's call": lambda m: m[1].update(tool_call_id="b"),
    "refusal": lambda m: m[2].pop("refusal"),
    "image": lambda m: m[3]["content"].pop(),
    "order": lambda m: m.reverse(),
    "message": lambda m: m.pop(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_a_row_loses_is_seen(change):
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in "ab"]
    image = {"type": "image_url", "image_url": {"url": "https://a"}}
    chat = [
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "assistant", "content": "x", "refusal": "no"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
    ]
    before = normal_form(render_messages(chat), KEPT)
    assert before == normal_form(render_messages(json.loads(json.dumps(chat))), KEPT)
    change(chat)
    assert normal_form(render_messages(chat), KEPT) != before


def test_model_calls_are_cut_where_the_mapping_cuts_them():
    def text(words, **fields):
        return {"type": "message", "role": "assistant", "content": words, **fields}

    thought, call = {"type": "reasoning", "summary": []}, {"type": "function_call", "name": "f", "call_id": "k"}
    assert [len(group) for group in model_calls([text("a"), thought, text("b"), text("c")])] == [1, 2, 1]
    assert [len(group) for group in model_calls([thought, call, text("a"), thought, call])] == [5]
    assert [len(group) for group in model_calls([text("a"), text("b", **TOKENS), thought, call])] == [2, 2]
    assert [len(group) for group in model_calls([call, {"type": "function_call_output"}, call])] == [1, 1, 1]


def test_messages_that_no_conversion_writes_are_refused():
    with pytest.raises(ConvertError, match="role 'critic'"):
        render_messages([{"role": "critic", "content": "x"}])
    with pytest.raises(ConvertError, match="type 'audio'"):
        render_messages([{"role": "user", "content": [{"type": "audio"}]}])
    with pytest.raises(ConvertError, match="no input"):
        normal_prompt({}, KEPT)


def test_flat_calls_and_tools_are_rendered_too():
    (items,) = render_messages(
        [{"role": "assistant", "content": "", "tool_calls": [{"id": "k", "name": "f", "arguments": {"a": 1}}]}]
    )
    assert items == [{"type": "function_call", "call_id": "k", "name": "f", "arguments": {"a": 1}}]
    assert render_tools([{"name": "f", "description": "d", "parameters": {}}]) == [
        {"type": "function", "name": "f", "description": "d", "parameters": {}}
    ]
    assert SimpleNamespace(**render_tools([{"type": "function", "function": {"name": "g"}}])[0]).name == "g"

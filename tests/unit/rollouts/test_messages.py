import json

import pytest

from regimen.errors import RolloutError
from regimen.rollouts.messages import chat_tools, content_text, final_text, input_messages, output_messages


def text(words, role="assistant", **fields):
    return {"type": "message", "role": role, "content": words, **fields}


def call(call_id, name="look", arguments="{}", **fields):
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **fields}


def result(call_id, words="ok"):
    return {"type": "function_call_output", "call_id": call_id, "output": words}


def thought(words):
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": words}]}


def tool_call(call_id, name="look", arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOKENS = {"prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [-0.1]}


def test_bare_string_input_and_instructions():
    assert input_messages({"instructions": "Be kind.", "input": "Hi"}) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_input_with_history_keeps_calls_and_results():
    given = [
        text("You help.", "developer"),
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        thought("Hm."),
        call("c1", arguments='{"x":  1}'),
        result("c1", "one"),
        text("Done."),
        text("Thanks", "user"),
    ]
    assert input_messages({"input": given}) == [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "ab"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [tool_call("c1", arguments='{"x":  1}')],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "one"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks"},
    ]


@pytest.mark.parametrize("params", [{}, {"input": 3}, {"input": {"role": "user"}}])
def test_input_that_is_no_prompt(params):
    with pytest.raises(RolloutError, match="expected a string or a list of items"):
        input_messages(params)


def test_one_model_call_becomes_one_message():
    output = [
        thought("First."),
        text("I look."),
        call("a"),
        call("b", "buy"),
        result("b", "B"),
        result("a", "A"),
        text("End"),
    ]
    assert output_messages(output) == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "First.",
            "tool_calls": [tool_call("a"), tool_call("b", "buy")],
        },
        {"role": "tool", "tool_call_id": "b", "name": "buy", "content": "B"},
        {"role": "tool", "tool_call_id": "a", "name": "look", "content": "A"},
        {"role": "assistant", "content": "End"},
    ]


def test_text_after_text_is_another_model_call():
    assert [message["content"] for message in output_messages([text("One."), thought("Hm."), text("Two.")])] == [
        "One.",
        "Two.",
    ]


def test_calls_that_wait_for_results_keep_the_message_open():
    (message,) = output_messages([call("a"), thought("And"), call("b"), text("both")])
    assert [made["id"] for made in message["tool_calls"]] == ["a", "b"]
    assert (message["content"], message["reasoning_content"]) == ("both", "And")


def test_token_ids_end_a_model_call():
    assert len(output_messages([text("a"), text("b", **TOKENS), text("c", **TOKENS)])) == 2
    null = dict.fromkeys(TOKENS)
    assert len(output_messages([text("a", **null), text("b", **null)])) == 2


def test_user_messages_inside_output_stay():
    roles = [message["role"] for message in output_messages([text("a"), text("You see a door.", "user"), text("b")])]
    assert roles == ["assistant", "user", "assistant"]


def test_malformed_arguments_come_out_as_they_were():
    (message,) = output_messages([call("a", arguments='{"x": ')])
    assert message["tool_calls"][0]["function"]["arguments"] == '{"x": '


def test_values_that_are_no_strings_become_json():
    messages = output_messages([call("a", arguments={"x": "é"}), result("a", {"y": [1]})])
    assert messages[0]["tool_calls"][0]["function"]["arguments"] == '{"x": "é"}'
    assert messages[1]["content"] == '{"y": [1]}'


def test_tool_output_in_parts():
    assert output_messages([result("z", [{"type": "output_text", "text": "p"}, {"text": "q"}])]) == [
        {"role": "tool", "tool_call_id": "z", "content": "pq"}
    ]


@pytest.mark.parametrize("kind", [["output_text"], {"a": 1}])
def test_a_part_whose_type_is_no_string_is_refused(kind: object):
    said = {"type": "message", "role": "assistant", "content": [{"type": kind, "text": "p"}]}
    with pytest.raises(RolloutError, match="content holds a part of type"):
        output_messages([said])
    assert output_messages([result("z", [{"type": kind, "text": "p"}])])[0]["content"] == json.dumps(
        [{"type": kind, "text": "p"}]
    )


def test_items_without_a_type_are_told_by_their_fields():
    untyped = [
        {"call_id": "a", "name": "look", "arguments": "{}"},
        {"call_id": "a", "output": "seen"},
        {"role": "assistant", "content": "ok"},
    ]
    assert [message["role"] for message in output_messages(untyped)] == ["assistant", "tool", "assistant"]


def test_chat_messages_as_items():
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [tool_call("a", arguments='{"x":1}')]},
        {"role": "tool", "tool_call_id": "a", "content": "seen"},
    ]
    assert output_messages(messages) == [
        {"role": "assistant", "content": "", "tool_calls": [tool_call("a", arguments='{"x":1}')]},
        {"role": "tool", "tool_call_id": "a", "name": "look", "content": "seen"},
    ]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"type": "web_search_call"}, "web_search_call"),
        ({"type": "message", "role": "critic", "content": "x"}, "the role is 'critic'"),
        ({"type": "function_call", "call_id": "a"}, "no name"),
        (text([{"type": "input_file", "file_id": "x", "text": "y"}]), "input_file"),
        (text([{"type": "input_image", "file_id": "x"}]), "an image without a URL"),
        (text([7]), "content holds a number"),
        (text([{"type": "refusal", "refusal": "no"}], "user"), "a user message holds a refusal"),
        ({"type": "reasoning", "content": [{"type": "input_image", "image_url": "x"}]}, "reasoning holds"),
        (text(7), "content is a number"),
        ("words", "the item is a string"),
    ],
)
def test_what_has_no_text_form_is_refused_with_its_place(item, said):
    with pytest.raises(RolloutError, match=said) as caught:
        output_messages([text("a"), item])
    assert caught.value.where == "output[1]"


def test_reasoning_from_content_and_hidden_reasoning():
    open_one = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]}
    hidden = {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    assert output_messages([open_one, text("a")])[0]["reasoning_content"] == "t"
    assert output_messages([hidden, text("a")]) == [{"role": "assistant", "content": "a"}]


def test_full_reasoning_is_believed_before_its_summary():
    both = {"type": "reasoning", "summary": [{"text": "short"}], "content": [{"text": "one"}, {"text": "two"}]}
    assert output_messages([both, text("a")])[0]["reasoning_content"] == "one\ntwo"


def test_a_refusal_has_its_own_field():
    parts = [{"type": "output_text", "text": "I"}, {"type": "refusal", "refusal": "won't"}]
    assert output_messages([text(parts)]) == [{"role": "assistant", "content": "I", "refusal": "won't"}]
    assert output_messages([{"role": "assistant", "content": None, "refusal": "no"}]) == [
        {"role": "assistant", "content": "", "refusal": "no"}
    ]
    assert content_text(parts) == final_text([text(parts)]) == "Iwon't"


def test_images_are_references_and_make_content_a_list():
    seen = {"type": "input_image", "image_url": "https://a/b.png", "detail": "low", "file_id": None}
    chat = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    low = {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}}
    given = [text([{"type": "input_text", "text": "Look:"}, seen, chat], "user"), call("a"), result("a", [chat])]
    messages = input_messages({"input": given})
    assert messages[0] == {"role": "user", "content": [{"type": "text", "text": "Look:"}, low, chat]}
    assert messages[2] == {"role": "tool", "tool_call_id": "a", "name": "look", "content": [chat]}
    (answer,) = output_messages([text("See "), call("b"), text([seen])])
    assert answer["content"] == [{"type": "text", "text": "See "}, low]
    assert content_text([{"type": "input_text", "text": "Look:"}, seen]) == "Look:"


def test_an_invented_call_id_is_free_and_an_output_without_one_is_the_latest_calls():
    messages = output_messages([call("call_1"), call(None), {"type": "function_call_output", "output": "x"}])
    assert [made["id"] for made in messages[0]["tool_calls"]] == ["call_1", "call_2"]
    assert messages[1]["tool_call_id"] == "call_2"


def test_a_tool_output_that_is_data_stays_whole():
    data = [{"text": "pen", "price": 3}]
    assert output_messages([result("a", data)])[0]["content"] == '[{"text": "pen", "price": 3}]'
    assert output_messages([result("a", None)])[0]["content"] == ""


def test_tools_in_chat_spelling():
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    flat = {"type": "function", "name": "f", "description": "Does f.", "parameters": parameters, "strict": True}
    chat = {"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": parameters}}
    bare = {"type": "function", "name": "g", "description": None}
    empty = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}}
    assert chat_tools({"tools": [flat, chat, bare]}) == [chat, chat, empty]
    assert chat_tools({"tools": None}) == chat_tools({}) == []
    with pytest.raises(RolloutError, match="web_search"):
        chat_tools({"tools": [{"type": "web_search"}]})


def test_final_text():
    assert final_text([text("a"), text([{"text": "b"}, {"text": "c"}]), result("x")]) == "bc"
    assert final_text([call("a")]) is None
    assert content_text(None) == ""


def test_the_shop_file(data):
    row = json.loads((data / "shop.jsonl").read_text().splitlines()[2])
    messages = output_messages(row["response"]["output"])
    assert [message["role"] for message in messages] == ["assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert messages[0]["reasoning_content"] == "I need both prices."
    assert [made["function"]["arguments"] for made in messages[0]["tool_calls"]] == [
        '{"article": "pen"}',
        '{"article": "ink"}',
    ]
    assert messages[-1] == {"role": "assistant", "content": "The total is 5."}


def test_tools_and_calls_must_be_lists_of_objects():
    with pytest.raises(RolloutError, match="tools: is a string"):
        chat_tools({"tools": "look"})
    with pytest.raises(RolloutError, match=r"output\[0\].tool_calls: is a list"):
        output_messages([{"role": "assistant", "content": "", "tool_calls": ["look"]}])

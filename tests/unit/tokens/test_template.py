"""Chat templates: exact masks, turns that continue instead of being rendered again, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from regimen.errors import PolicyError, TokenError
from regimen.rollouts.turns import TokenSequence
from regimen.tokens.template import Renderer, shipped_template

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
IM_END = 1
PLAIN_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen-like: reasoning of earlier turns is dropped once another user turn follows.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def renderer(tiny: ModuleType) -> Renderer:
    return Renderer(tiny.tiny_tokenizer())


def trained(renderer: Renderer, sequence: TokenSequence) -> list[str]:
    return [renderer.decode(sequence.ids[start:stop]) for start, stop in sequence.spans]


def assistant_call(arguments: Any = '{"a": 1, "b": 2}') -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def test_the_prompt_by_hand(renderer: Renderer) -> None:
    ids = renderer.prompt_ids(QUESTION, [])
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert renderer.decode(ids) == text
    assert ids[0] == 0  # a special token, not its letters
    assert len(ids) == len(text) - sum(len(t) - 1 for t in ["<|im_start|>"] * 3 + ["<|im_end|>"] * 2)
    assert renderer.stop_ids == (IM_END,)


def test_tools_stand_in_the_system_turn_with_and_without_one(renderer: Renderer) -> None:
    for messages in (QUESTION, QUESTION[1:]):
        text = renderer.decode(renderer.prompt_ids(messages, TOOLS))
        assert text.startswith("<|im_start|>system\n")
        assert text.count("<|im_start|>system") == 1
        assert '"name": "add"' in text
        assert "<tool_call>" in text


def test_a_played_episode_gives_the_ids_of_the_written_conversation(renderer: Renderer) -> None:
    """prompt + sampled + continuation + sampled = what reading the text gives, with the same spans."""
    sampled = [renderer.encode(f"{CALL}<|im_end|>"), renderer.encode("The answer is 3.<|im_end|>")]
    reply = {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "3"}
    prompt = renderer.prompt_ids(QUESTION, TOOLS)
    message = renderer.parse_assistant(sampled[0])
    following = renderer.continuation_ids(message, [reply], TOOLS)
    second = [*prompt, *sampled[0], *following]
    played = [*second, *sampled[1]]
    spans = [(len(prompt), len(prompt) + len(sampled[0])), (len(second), len(played))]

    last = {"role": "assistant", "content": "The answer is 3."}
    [written] = renderer.conversation([*QUESTION, assistant_call(), reply, last], TOOLS)
    assert written.ids == played
    assert written.spans == spans
    assert trained(renderer, written) == [f"{CALL}<|im_end|>", "The answer is 3.<|im_end|>"]
    assert renderer.decode(following) == "\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"


def test_spans_hold_stop_tokens_and_no_headers_or_tool_outputs(renderer: Renderer) -> None:
    reply = {"role": "tool", "tool_call_id": "c1", "content": "assistant"}
    [sequence] = renderer.conversation(
        [*QUESTION, assistant_call(), reply, {"role": "assistant", "content": "3"}], TOOLS
    )
    for start, stop in sequence.spans:
        assert sequence.ids[stop - 1] == IM_END
        assert sequence.ids[start:stop].count(IM_END) == 1
        assert 0 not in sequence.ids[start:stop]  # no <|im_start|>
        assert renderer.decode(sequence.ids[:start]).endswith("<|im_start|>assistant\n")
    masked = renderer.decode([t for i, t in enumerate(sequence.ids) if not any(a <= i < b for a, b in sequence.spans)])
    assert "<|im_start|>tool\nassistant<|im_end|>" in masked


def test_assistant_messages_of_the_prompt_are_context(renderer: Renderer) -> None:
    shown = [{"role": "user", "content": "0 + 1?"}, {"role": "assistant", "content": "1"}]
    messages = [*shown, *QUESTION[1:], {"role": "assistant", "content": "3"}]
    [sequence] = renderer.conversation(messages, [], first_trained=3)
    assert trained(renderer, sequence) == ["3<|im_end|>"]
    [all_turns] = renderer.conversation(messages, [])
    assert trained(renderer, all_turns) == ["1<|im_end|>", "3<|im_end|>"]
    assert all_turns.ids == sequence.ids
    assert renderer.conversation(QUESTION, []) == []  # nobody answered


def test_arguments_as_text_and_as_object_are_the_same(renderer: Renderer) -> None:
    as_text, as_object = (renderer.conversation([*QUESTION, assistant_call(a)], TOOLS) for a in ('{"a":1}', {"a": 1}))
    assert as_text == as_object
    [broken] = renderer.conversation([*QUESTION, assistant_call("{broken")], TOOLS)
    assert "{broken" in trained(renderer, broken)[0]


def test_tools_that_the_template_drops_are_refused(tiny: ModuleType) -> None:
    plain = Renderer(tiny.tiny_tokenizer(), PLAIN_CHATML)
    assert plain.prompt_ids(QUESTION, [])
    for call in (plain.prompt_ids, plain.conversation):
        with pytest.raises(TokenError, match="drops the tools"):
            call(QUESTION, TOOLS)


def test_a_template_that_rewrites_earlier_turns_gives_a_sequence_for_each(tiny: ModuleType) -> None:
    forgetful = Renderer(tiny.tiny_tokenizer(), FORGETFUL)
    messages = [
        QUESTION[1],
        {"role": "assistant", "content": "<think>a</think>3"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "<think>b</think>Yes"},
    ]
    first, second = forgetful.conversation(messages, [])
    assert trained(forgetful, first) == ["<think>a</think>3<|im_end|>"]
    assert trained(forgetful, second) == ["<think>b</think>Yes<|im_end|>"]
    assert "<think>a" not in forgetful.decode(second.ids)  # as the model would really be asked
    with pytest.raises(TokenError, match="rewrites an assistant turn"):
        forgetful.continuation_ids(messages[1], [messages[2]], [])


def test_a_turn_that_does_not_continue_its_prompt_is_refused(tiny: ModuleType) -> None:
    template = PLAIN_CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>model\n{% endif %}")
    odd = Renderer(tiny.tiny_tokenizer(), template)
    with pytest.raises(TokenError, match="continuation of its prompt") as caught:
        odd.conversation([QUESTION[1], {"role": "assistant", "content": "3"}], [])
    assert caught.value.where == "message 1"


def test_parse_assistant_drops_the_stop_token(renderer: Renderer) -> None:
    message = renderer.parse_assistant(renderer.encode(f"Wait. {CALL}<|im_end|>"))
    assert message["content"] == "Wait."
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert renderer.parse_assistant(renderer.encode("no stop"))["content"] == "no stop"
    assert renderer.parse_assistant([])["content"] == ""


def test_template_arguments_reach_the_template_and_the_fingerprint(tiny: ModuleType) -> None:
    template = PLAIN_CHATML + "{% if mood is defined %}({{ mood }}){% endif %}"
    plain, moody = (Renderer(tiny.tiny_tokenizer(), template, kwargs) for kwargs in (None, {"mood": "calm"}))
    assert moody.decode(moody.prompt_ids(QUESTION, [])).endswith("(calm)")
    assert plain.template_fingerprint != moody.template_fingerprint
    assert plain.fingerprint == moody.fingerprint  # the tokenizer is the same


def test_a_template_that_fails_is_a_token_error(tiny: ModuleType) -> None:
    picky = Renderer(
        tiny.tiny_tokenizer(), "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    )
    with pytest.raises(TokenError, match="no system"):
        picky.prompt_ids(QUESTION, [])


def test_where_templates_come_from(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(PLAIN_CHATML)
    assert Renderer(tiny.tiny_tokenizer(), str(path)).template == PLAIN_CHATML
    assert Renderer(tiny.tiny_tokenizer(), "tools").template == shipped_template()
    with pytest.raises(TokenError, match="no such chat template"):
        Renderer(tiny.tiny_tokenizer(), "missing.jinja")
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(TokenError, match="has no chat template"):
        Renderer(tokenizer)


def test_loading_saving_and_stop_tokens(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tokenizer = tiny.tiny_tokenizer(("<|im_start|>", "<|im_end|>", "<|end|>"), eos="<|end|>")
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    loaded = Renderer.load(folder, PLAIN_CHATML)
    assert loaded.stop_ids == (2, 0, 1)  # eos, the generation's, and what ends the template's turns
    loaded.save(tmp_path / "copy")
    copy = Renderer.load(tmp_path / "copy")
    assert copy.template == PLAIN_CHATML
    assert copy.fingerprint == loaded.fingerprint
    with pytest.raises(PolicyError, match="no tokenizer"):
        Renderer.load(tmp_path / "nothing")

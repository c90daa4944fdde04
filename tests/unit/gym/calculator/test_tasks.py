from __future__ import annotations

from collections import Counter

import pytest

from regimen.errors import ConfigError
from regimen.gym.environment import SPLITS, ToolError
from regimen.gym.environments.calculator import Calculator
from regimen.gym.environments.calculator.expression import ExpressionError, calculate
from regimen.gym.environments.calculator.tasks import DEFAULT_MIX, canonical, questions, split_of


def question(row):
    return row["responses_create_params"]["input"][-1]["content"]


def test_rows_are_in_gym_layout():
    row = Calculator().tasks("train", 1)[0].row
    items = row["responses_create_params"]["input"]
    tried = ["function_call", "function_call_output"]
    spoken = ["message"]
    assert [item["type"] for item in items] == [*spoken * 2, *tried, *spoken * 2, *tried * 2, *spoken * 2]
    roles = [item["role"] for item in items if item["type"] == "message"]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    calls = [item["call_id"] for item in items if item["type"] == "function_call"]
    assert calls == [item["call_id"] for item in items if item["type"] == "function_call_output"]
    assert len(set(calls)) == 3


def test_the_second_example_shows_a_rejected_call_and_another_try():
    items = Calculator().tasks("train", 1)[0].row["responses_create_params"]["input"]
    outputs = [item["output"] for item in items if item["type"] == "function_call_output"]
    assert outputs == ["360", "Error: unexpected character '×' at position 4; use * for multiplication", "1680"]


def test_rows_hold_the_tool_and_the_verifier_fields():
    row = Calculator().tasks("train", 1)[0].row
    (tool,) = row["responses_create_params"]["tools"]
    assert (tool["type"], tool["name"], tool["parameters"]["required"]) == ("function", "calculator", ["expression"])
    assert row["agent_ref"] == {"name": "calculator"}
    assert (row["kind"], row["split"]) == ("addition", "train")


def test_all_tasks_share_the_prompt():
    prompts = {str(task.row["responses_create_params"]["input"][:-1]) for task in Calculator().tasks("train", 50)}
    assert len(prompts) == 1


def test_enough_tasks_and_no_text_twice():
    texts = {split: [question(task.row) for task in Calculator().tasks(split)] for split in SPLITS}
    assert [len(texts[split]) for split in SPLITS] == [2000, 400, 500]
    every = [text for split in SPLITS for text in texts[split]]
    assert len(set(every)) == len(every)


def test_splits_share_no_arithmetic_whatever_the_seed():
    train = {canonical(q.expression) for _, q in zip(range(1500), questions("train", 0, DEFAULT_MIX), strict=False)}
    test = {canonical(q.expression) for _, q in zip(range(600), questions("test", 9, DEFAULT_MIX), strict=False)}
    assert not train & test


def test_commuted_operands_are_one_task():
    assert canonical("47 + 23") == canonical("23 + 47") == "23 + 47"
    assert canonical("9 * 10") == "9 * 10"
    assert canonical("47 - 23") == "47 - 23"
    assert split_of("47 * 23") == split_of("23 * 47")


def test_a_prefix_is_a_prefix_and_another_seed_is_another_order():
    assert [t.row for t in Calculator().tasks("test", 40)] == [t.row for t in Calculator().tasks("test")[:40]]
    assert Calculator(seed=1).tasks("test", 5)[0].row != Calculator(seed=0).tasks("test", 5)[0].row


@pytest.mark.parametrize("size", [50, 100, 400])
def test_every_prefix_is_mixed(size):
    counts = Counter(task.row["kind"] for task in Calculator().tasks("train", size))
    for kind, share in DEFAULT_MIX.items():
        assert abs(counts[kind] - share * size) <= 1


async def test_what_is_shown_is_rejected_exactly_for_notation_tasks():
    environment = Calculator(mix={"notation": 1.0}, hint=0)
    for task in environment.tasks("train", 60):
        shown = question(task.row).split(maxsplit=1)[1]
        shown = shown.removeprefix("is ").removeprefix("much is ").removeprefix("out ").rstrip("?.")
        with pytest.raises(ToolError, match=r"^Error: unexpected character"):
            await environment.call(None, "calculator", {"expression": shown})
    with pytest.raises(ExpressionError):
        calculate("1,081 + 1")


def test_word_problems_state_their_operands():
    for task in Calculator(mix={"word": 1.0}).tasks("train", 60):
        assert int(task.row["expected_answer"]) > 0


def test_the_mix_is_an_option():
    kinds = Counter(t.row["kind"] for t in Calculator(mix={"addition": 3, "word": 1}).tasks("train", 40))
    assert kinds == {"addition": 30, "word": 10}


@pytest.mark.parametrize("hint, least, most", [(0, 0, 0), (0.4, 0.35, 0.45), (1, 1, 1)])
def test_the_hint_is_a_share_of_all_questions(hint, least, most):
    tasks = Calculator(hint=hint).tasks("train", 1000)
    hinted = sum(question(task.row).endswith(" Use the calculator.") for task in tasks)
    assert least <= hinted / 1000 <= most
    plain = [question(task.row) for task in Calculator(hint=0).tasks("train", 1000)]
    assert [question(task.row).removesuffix(" Use the calculator.") for task in tasks] == plain


def test_a_hint_beyond_1_is_refused():
    with pytest.raises(ConfigError, match=r"hint is 1\.5"):
        Calculator(hint=1.5)


@pytest.mark.parametrize(
    "mix, text",
    [
        ({"adition": 1}, "did you mean 'addition'"),
        ({"addition": -1}, "mix.addition is -1"),
        ({"addition": True}, "mix.addition is True"),
        ({"addition": 0}, "every share of mix is 0"),
    ],
)
def test_wrong_mixes_are_refused(mix, text):
    with pytest.raises(ConfigError, match=text):
        Calculator(mix=mix)


def test_asking_for_more_than_there_is():
    with pytest.raises(ConfigError, match="no more validation tasks of kind 'addition'"):
        Calculator(mix={"addition": 1}).tasks("validation", 5000)


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("divide", {"expression": "1"}, "unknown tool 'divide'"),
        ("calculator", {}, 'calculator takes {"expression": "12 \\+ 7"}'),
        ("calculator", {"expression": 12}, "calculator takes"),
        ("calculator", {"expression": "1 / 0"}, "Error: division by zero"),
    ],
)
async def test_wrong_calls_are_told_to_the_model(name, arguments, text):
    with pytest.raises(ToolError, match=text):
        await Calculator().call(None, name, arguments)

"""The generated requests: the right calls score 1 on all, and nothing else does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from prompts import asked

from regimen.errors import GymError
from regimen.gym.conformance import judge, message
from regimen.gym.environment import SPLITS, Task, ToolError, Verdict
from regimen.gym.environments.tool_choice import ToolChoice
from regimen.gym.environments.tool_choice.catalog import TOOLS
from regimen.gym.environments.tool_choice.tasks import KINDS, NUM_TOOLS, SYSTEM

ENVIRONMENT = ToolChoice()
TASKS = [task for split in SPLITS for task in ENVIRONMENT.tasks(split)]
CALLING = [task for task in TASKS if task.row["expected_calls"]]
ANSWERING = [task for task in TASKS if not task.row["expected_calls"]]
Item = dict[str, Any]


def call(name: Any, arguments: Any) -> Item:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"type": "function_call", "name": name, "arguments": text, "call_id": "c"}


def right(task: Task) -> list[Item]:
    """The calls that are expected; written here from the row, apart from `solve`."""
    return [call(one["name"], one["arguments"]) for one in task.row["expected_calls"]]


async def judged(task: Task, output: list[Item]) -> Verdict:
    async def play(_: Any) -> list[Item]:
        return output

    verdict = await judge(ENVIRONMENT, task, play)
    assert verdict is not None
    return verdict


def test_there_are_hundreds_over_all_kinds() -> None:
    assert Counter(task.row["split"] for task in TASKS) == {"train": 600, "validation": 120, "test": 200}
    assert Counter(task.row["kind"] for task in TASKS) == dict.fromkeys(KINDS, 120 + 24 + 40)
    used = Counter(one["name"] for task in TASKS for one in task.row["expected_calls"])
    assert used.keys() == TOOLS.keys()
    for task in TASKS:
        names = [tool["name"] for tool in task.row["responses_create_params"]["tools"]]
        assert len(set(names)) == len(names) == NUM_TOOLS
        needed = {one["name"] for one in task.row["expected_calls"]}
        assert needed <= set(names)


def test_every_value_stands_in_the_request() -> None:
    """Nobody has to guess: what is expected is said, or follows from a word that stands for it."""
    words = {True: ("random", "formal", "outside")}

    def values(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [part for inner in value.values() for part in values(inner)]
        return [part for inner in value for part in values(inner)] if isinstance(value, list) else [value]

    for task in CALLING:
        for value in values([one["arguments"] for one in task.row["expected_calls"]]):
            said = any(word in asked(task) for word in words[value]) if value is True else str(value) in asked(task)
            assert said, (value, asked(task))


def test_seeds_share_the_splits() -> None:
    prompts = [asked(task) for task in TASKS]
    assert len(set(prompts)) == len(prompts)
    assert not {asked(task) for task in ToolChoice(seed=1).tasks("test")} & {
        asked(t) for t in ENVIRONMENT.tasks("train")
    }


async def test_the_right_calls_score_1_on_all_tasks() -> None:
    for task in CALLING:
        for output in (right(task), right(task)[::-1], [*right(task), message("Done.")]):
            verdict = await judged(task, output)
            assert verdict.reward == 1.0, task.row
            assert verdict.components == {"right_tools": 1.0, "right_calls": 1.0, "no_extra_call": 1.0}
    for task in ANSWERING:
        answer = task.row["expected_answer"]
        for text in (answer, answer.rstrip("."), f"<think>Hm.</think>{answer}", f"**{answer}**"):
            assert (await judged(task, [message(text)])).reward == 1.0, task.row


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return value[:-1]
    return {**value, "outside": not value.get("outside", False)} if isinstance(value, dict) else f"{value}x"


def mistyped(value: Any) -> Any:
    return str(value) if isinstance(value, bool | int | float) else [value]


def with_first(task: Task, change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[Item]:
    one, *others = task.row["expected_calls"]
    return [call(one["name"], change(one["arguments"])), *(call(o["name"], o["arguments"]) for o in others)]


def first_key(arguments: dict[str, Any]) -> str:
    return next(iter(arguments))


def every_tool(task: Task) -> list[Item]:
    return [call(tool["name"], {}) for tool in task.row["responses_create_params"]["tools"]]


def another_tool(task: Task) -> str:
    needed = {one["name"] for one in task.row["expected_calls"]}
    return next(name for name in TOOLS if name not in needed)


WRONG_CALLS: list[Callable[[Task], list[Item]]] = [
    lambda task: [],
    lambda task: [message("No tool fits.")],
    lambda task: [message(json.dumps(task.row["expected_calls"]))],
    lambda task: [
        message("\n".join(f"<tool_call>{json.dumps(one)}</tool_call>" for one in task.row["expected_calls"]))
    ],
    lambda task: right(task)[:-1],
    lambda task: [*right(task), *right(task)],
    lambda task: [*right(task), right(task)[0]],
    lambda task: [*right(task), call(another_tool(task), {})],
    lambda task: [*right(task), call("no_such_tool", {})],
    lambda task: [*right(task), *every_tool(task)],
    every_tool,
    lambda task: with_first(task, lambda a: {**a, "comment": "as asked"}),
    lambda task: with_first(task, lambda a: {**a, first_key(a): changed(a[first_key(a)])}),
    lambda task: with_first(task, lambda a: {**a, first_key(a): mistyped(a[first_key(a)])}),
    lambda task: with_first(task, lambda a: {k: v for k, v in a.items() if k != first_key(a)}),
    lambda task: with_first(task, lambda a: {"arguments": a}),
    lambda task: [{**item, "arguments": json.loads(item["arguments"])} for item in right(task)],
    lambda task: [{**item, "arguments": item["arguments"] + "}"} for item in right(task)],
    lambda task: [{**item, "name": item["name"].upper()} for item in right(task)],
    lambda task: [{**item, "name": None} for item in right(task)],
    lambda task: [
        {"type": "function_call_output", "call_id": "c", "output": item["arguments"]} for item in right(task)
    ],
    lambda task: [call(one["name"], '{"a":' * 3000 + "1" + "}" * 3000) for one in task.row["expected_calls"]],
]


def test_changes_change() -> None:
    assert [changed(v) for v in (True, 2, [1, 2], {"high_chairs": 1}, "a")] == [
        False, 3, [1], {"high_chairs": 1, "outside": True}, "ax",
    ]  # fmt: skip


async def test_wrong_calls_score_0_on_all_tasks() -> None:
    for number, play in enumerate(WRONG_CALLS):
        scored = [(number, play(task)) for task in CALLING if (await judged(task, play(task))).reward != 0.0]
        assert scored == []


WRONG_ANSWERS: list[Callable[[Task], list[Item]]] = [
    lambda task: [],
    lambda task: [message("")],
    lambda task: [message("Done.")],
    lambda task: [message(asked(task))],
    lambda task: [message(SYSTEM)],
    lambda task: [message("No tool fits. Missing: city")],
    lambda task: [message(f"{task.row['expected_answer']} {task.row['expected_answer']}")],
    lambda task: [message(f"<think>{task.row['expected_answer']}")],
    lambda task: [message("Missing: argument")],
    lambda task: [message("No tool fits." if "Missing" in task.row["expected_answer"] else "Missing: city")],
    lambda task: [*every_tool(task), message(task.row["expected_answer"])],
    lambda task: [call("no_such_tool", {}), message(task.row["expected_answer"])],
    lambda task: [call(another_tool(task), "{"), message(task.row["expected_answer"])],
    lambda task: [message(task.row["expected_answer"]), call("no_such_tool", {})],
]


async def test_wrong_answers_score_0_where_no_call_is_right() -> None:
    for number, play in enumerate(WRONG_ANSWERS):
        scored = [(number, play(task)) for task in ANSWERING if (await judged(task, play(task))).reward != 0.0]
        assert scored == []


async def test_components_of_half_the_work() -> None:
    task = next(task for task in TASKS if len(task.row["expected_calls"]) == 2)
    verdict = await judged(task, right(task)[:1])
    assert verdict.components == {"right_tools": 0.0, "right_calls": 0.5, "no_extra_call": 1.0}
    verdict = await judged(task, [right(task)[0], call(right(task)[1]["name"], "{}")])
    assert verdict.components == {"right_tools": 1.0, "right_calls": 0.5, "no_extra_call": 0.0}
    assert verdict.metrics["num_malformed"] == 1


async def test_a_call_says_whether_it_can_be_read_and_not_whether_it_is_right() -> None:
    task = next(task for task in TASKS if task.row["kind"] == "single")
    session = await ENVIRONMENT.seed(task)
    name, tool = next((name, TOOLS[name]) for name in session)
    with pytest.raises(ToolError, match="needs"):
        await ENVIRONMENT.call(session, name, {})
    wrong = tool.ask(__import__("random").Random(9), False).arguments
    assert await ENVIRONMENT.call(session, name, wrong) == '{"status": "done"}'
    with pytest.raises(ToolError, match="unknown tool"):
        await ENVIRONMENT.call(session, next(other for other in TOOLS if other not in session), {})


TOOL = {"type": "function", "name": "f", "description": "f", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    "fields, text",
    [
        ({}, "expected_calls"),
        ({"expected_calls": "f"}, "expected_calls"),
        ({"expected_calls": [{"name": "g", "arguments": {}}]}, "an expected call cannot be made.*unknown tool"),
        ({"expected_calls": [{"name": "f", "arguments": {"a": 1}}]}, "takes no 'a'"),
        ({"expected_calls": [{"name": "f", "arguments": "{"}]}, "not JSON"),
    ],
)
async def test_a_task_that_cannot_be_judged_fails_and_scores_nothing(fields: dict[str, Any], text: str) -> None:
    row = {"responses_create_params": {"input": "Call f.", "tools": [TOOL]}, **fields}
    with pytest.raises(GymError, match=text):
        await judged(Task(0, row), [call("f", {})])


async def test_rows_of_ones_own() -> None:
    params = {"input": "Call f.", "tools": [TOOL]}
    task = Task(0, {"responses_create_params": params, "expected_calls": [{"name": "f", "arguments": "{}"}]})
    assert (await judged(task, [call("f", {})])).reward == 1.0
    assert (await judged(task, [call("f", {"a": 1})])).reward == 0.0
    task = Task(0, {"responses_create_params": params, "expected_calls": []})
    assert (await judged(task, [message("I will not.")])).reward == 1.0
    assert (await judged(task, [message(" ")])).reward == 0.0
    assert (await judged(task, [call("f", {}), message("Done.")])).reward == 0.0

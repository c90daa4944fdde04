"""One suite over every environment that ships. A new one adds its oracle to `ORACLES`, nothing else."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from regimen.gym.environment import SPLITS, Environment, Task, ToolError, load_environment, shipped_environments
from regimen.rollouts.messages import chat_tools, input_messages

Output = list[dict[str, Any]]
NUM_TASKS = 60


def message(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": content}


async def calculator_oracle(environment: Environment, session: Any, task: Task) -> Output:
    expected = task.row["expected_answer"]
    arguments = {"expression": expected}
    result = await environment.call(session, "calculator", arguments)
    return [
        {"type": "function_call", "name": "calculator", "arguments": json.dumps(arguments), "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": result},
        message(f"The answer is {result}."),
    ]


async def boxing_oracle(environment: Environment, session: Any, task: Task) -> Output:
    return [message(f"The answer is $\\boxed{{{task.row['expected_answer']}}}$.")]


async def tagging_oracle(environment: Environment, session: Any, task: Task) -> Output:
    return [message(f"<answer>{task.row['expected_answer']}</answer>")]


# Options with which an environment is checked here; its own tests look at all that it can be.
OPTIONS: dict[str, dict[str, Any]] = {"reasoning_gym": {"dataset": ["chain_sum", "gcd", "maze", "syllogism"]}}
# Environment -> who plays a task perfectly: (environment, session, task) -> output items.
ORACLES: dict[str, Callable[[Environment, Any, Task], Awaitable[Output]]] = {
    "calculator": calculator_oracle,
    "math": boxing_oracle,
    "multiple_choice": boxing_oracle,
    "reasoning_gym": tagging_oracle,
}


@pytest.fixture(params=shipped_environments())
def name(request) -> str:
    return request.param


@pytest.fixture
def environment(name) -> Environment:
    return load_environment(name, OPTIONS.get(name))


async def verdict(environment: Environment, task: Task, play: Any) -> Any:
    session = await environment.seed(task)
    try:
        return await environment.verify(session, task, await play(session))
    finally:
        await environment.close(session)


def test_every_environment_has_an_oracle(name):
    assert name in ORACLES


def test_the_name_is_the_folder(name, environment):
    assert environment.name == name
    assert environment.max_turns >= 1


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_deterministic_numbered_json_rows(name, environment, split):
    tasks = environment.tasks(split, NUM_TASKS)
    assert [task.index for task in tasks] == list(range(len(tasks)))
    assert [task.row for task in load_environment(name, OPTIONS.get(name)).tasks(split, NUM_TASKS)] == [
        task.row for task in tasks
    ]
    assert [task.row for task in environment.tasks(split, NUM_TASKS // 2)] == [t.row for t in tasks][: NUM_TASKS // 2]
    for task in tasks:
        assert json.loads(json.dumps(task.row)) == task.row


def test_splits_share_no_task(environment):
    asked = {
        split: {json.dumps(task.row["responses_create_params"]["input"]) for task in environment.tasks(split)}
        for split in SPLITS
    }
    assert all(asked.values())
    assert not asked["train"] & asked["validation"]
    assert not asked["train"] & asked["test"]
    assert not asked["validation"] & asked["test"]


def test_prompts_are_chat_messages_that_end_with_the_user(environment):
    for task in environment.tasks("train", NUM_TASKS):
        messages = input_messages(task.row["responses_create_params"])
        assert messages[-1]["role"] == "user"


def test_tools_have_a_json_schema(environment):
    for tool in chat_tools(environment.tasks("train", 1)[0].row["responses_create_params"]):
        function = tool["function"]
        assert function["name"]
        assert function["description"]
        assert function["parameters"]["type"] == "object"
        assert set(function["parameters"].get("required", [])) <= set(function["parameters"]["properties"])


async def test_the_oracle_scores_1(name, environment):
    for task in environment.tasks("train", NUM_TASKS):
        found = await verdict(environment, task, lambda session, task=task: ORACLES[name](environment, session, task))
        assert found.reward == 1.0, task.row
        json.dumps({"components": found.components, "metrics": found.metrics}, allow_nan=False)


@pytest.mark.parametrize("output", [[], [message("")], [message("I do not know.")]])
async def test_nothing_scores_0(environment, output):
    async def say(session: Any) -> Output:
        return output

    for task in environment.tasks("test", 10):
        assert (await verdict(environment, task, say)).reward == 0.0


async def test_repeating_the_question_scores_0(environment):
    for task in environment.tasks("test", NUM_TASKS):
        asked = input_messages(task.row["responses_create_params"])[-1]["content"]

        async def repeat(session: Any, asked: str = asked) -> Output:
            return [message(asked)]

        assert (await verdict(environment, task, repeat)).reward == 0.0, asked


async def test_an_unknown_tool_is_a_tool_error(environment):
    session = await environment.seed(environment.tasks("train", 1)[0])
    with pytest.raises(ToolError):
        await environment.call(session, "no_such_tool", {})
    await environment.close(session)


def test_an_unknown_option_is_refused(name):
    with pytest.raises(Exception, match="no_such_option"):
        load_environment(name, {"no_such_option": 1})

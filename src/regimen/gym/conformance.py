"""What every environment promises, checked on an environment: what `regimen test environment` runs.

In: an environment, and how many tasks to play. Out: one `Check` per promise, with the first thing that breaks it.
An exception of the environment is a problem of the check in which it came, never the end of the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from regimen.gym.environment import SPLITS, Environment, Task, ToolError, Verdict
from regimen.rollouts.messages import chat_tools, input_messages

NUM_PLAYED = 60
Output = list[dict[str, Any]]


class Check(msgspec.Struct, frozen=True):
    """A promise and what breaks it; `problem` None: kept."""

    promise: str
    problem: str | None = None


def message(text: str) -> dict[str, Any]:
    """An assistant message as an output item."""
    content: list[dict[str, Any]] = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": content}


def tool_call(name: str, arguments: dict[str, Any], call_id: str = "call_1") -> dict[str, Any]:
    """A call of a tool as an output item."""
    text = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function_call", "name": name, "arguments": text, "call_id": call_id}


def hostile_outputs() -> list[Output]:
    """Outputs that models should not write and some do: huge, nested, of wrong types. None is right for any task."""
    deep = '{"a":' * 3000 + "1" + "}" * 3000
    calls: list[dict[str, Any]] = [
        {"type": "function_call", "name": name, "arguments": arguments, "call_id": "call_1"}
        for name in ("", "no_such_tool", None, 7)
        for arguments in ("", "{", "[]", "null", "NaN", '{"a": 1e999}', deep, None, 7)
    ]
    texts = ["\x00", "\ud800", "x" * 100_000, "[" * 100_000, "(" * 20_000 + ")" * 20_000, deep]
    return [*([call] for call in calls), *([message(text)] for text in texts), calls]


async def judge(
    environment: Environment, task: Task, play: Callable[[Any], Awaitable[Output | None]]
) -> Verdict | None:
    """The verdict on what `play` does in a fresh session; None where it plays nothing."""
    session = await environment.seed(task)
    try:
        output = await play(session)
        return None if output is None else await environment.verify(session, task, output)
    finally:
        await environment.close(session)


async def check_environment(environment: Environment, num_tasks: int = NUM_PLAYED) -> list[Check]:
    """Every promise, kept or not, on at most `num_tasks` tasks per split."""
    return [Check(promise, await _problem_of(check, environment, num_tasks)) for promise, check in PROMISES.items()]


async def _problem_of(check: _Checker, environment: Environment, num_tasks: int) -> str | None:
    try:
        return await check(environment, num_tasks)
    except Exception as error:  # the boundary: a failing environment is what the check is for
        return f"{type(error).__name__}: {error}"


async def _tasks_repeat(environment: Environment, num_tasks: int) -> str | None:
    for split in SPLITS:
        tasks = environment.tasks(split, num_tasks)
        if not tasks:
            return f"{split} has no task"
        if [task.index for task in tasks] != list(range(len(tasks))):
            return f"the indices of {split} are not 0, 1, 2, …"
        if [task.row for task in environment.tasks(split, num_tasks)] != [task.row for task in tasks]:
            return f"a second call gives other tasks of {split}"
        prefix = environment.tasks(split, max(1, num_tasks // 2))
        if [task.row for task in prefix] != [task.row for task in tasks[: len(prefix)]]:
            return f"asking for fewer tasks of {split} gives other tasks"
    return None


async def _rows_are_json(environment: Environment, num_tasks: int) -> str | None:
    for split in SPLITS:
        for task in environment.tasks(split, num_tasks):
            if json.loads(json.dumps(task.row, allow_nan=False)) != task.row:
                return f"{split} task {task.index} changes when it is written as JSON"
    return None


async def _splits_are_disjoint(environment: Environment, num_tasks: int) -> str | None:  # noqa: ARG001
    seen: dict[str, str] = {}
    for split in SPLITS:
        for task in environment.tasks(split):
            key = json.dumps(task.row["responses_create_params"]["input"])
            other = seen.setdefault(key, split)
            if other != split:
                return f"a task of {other} is in {split} too: task {task.index}"
    return None


async def _prompts_end_with_the_user(environment: Environment, num_tasks: int) -> str | None:
    for split in SPLITS:
        for task in environment.tasks(split, num_tasks):
            messages = input_messages(task.row["responses_create_params"])
            if not messages or messages[-1]["role"] != "user":
                return f"the prompt of {split} task {task.index} does not end with a user message"
    return None


async def _tools_have_a_schema(environment: Environment, num_tasks: int) -> str | None:
    for task in environment.tasks("train", num_tasks):
        for tool in chat_tools(task.row["responses_create_params"]):
            function = tool["function"]
            parameters: dict[str, Any] = function.get("parameters") or {}
            required: list[str] = parameters.get("required", [])
            if not function.get("description") or parameters.get("type") != "object":
                return f"tool {function['name']!r} lacks a description or parameters of type object"
            unknown = set(required) - set(parameters.get("properties", {}))
            if unknown:
                return f"tool {function['name']!r} requires {sorted(unknown)[0]!r}, which it does not describe"
    return None


async def _right_scores_1(environment: Environment, num_tasks: int) -> str | None:
    for split in SPLITS:
        for task in environment.tasks(split, num_tasks):
            verdict = await judge(environment, task, lambda session, task=task: environment.solve(session, task))
            if verdict is None:
                return "solve() is not written: it plays a task perfectly"
            if verdict.reward != 1.0:
                return f"solve() scores {verdict.reward} on {split} task {task.index}"
            json.dumps({"components": verdict.components, "metrics": verdict.metrics}, allow_nan=False)
    return None


async def _nothing_scores_0(environment: Environment, num_tasks: int) -> str | None:
    for task in environment.tasks("test", num_tasks):
        asked = input_messages(task.row["responses_create_params"])[-1]["content"]
        answers: dict[str, Output] = {
            "no output": [],
            "an empty answer": [message("")],
            "'I do not know.'": [message("I do not know.")],
            "the question repeated": [message(str(asked))],
        }
        for what, output in answers.items():
            reward = await _reward_of(environment, task, output)
            if reward != 0.0:
                return f"{what} scores {reward} on test task {task.index}"
    return None


async def _hostile_output_scores_0(environment: Environment, num_tasks: int) -> str | None:
    for task in environment.tasks("test", min(num_tasks, 3)):
        for output in hostile_outputs():
            reward = await _reward_of(environment, task, output)
            if not (math.isfinite(reward) and reward == 0.0):
                return f"{str(output)[:80]} scores {reward} on test task {task.index}"
    return None


async def _unknown_tools_are_refused(environment: Environment, num_tasks: int) -> str | None:  # noqa: ARG001
    session = await environment.seed(environment.tasks("train", 1)[0])
    try:
        await environment.call(session, "no_such_tool", {})
    except ToolError:
        return None
    finally:
        await environment.close(session)
    return "call() of a tool that does not exist raises no ToolError"


async def _reward_of(environment: Environment, task: Task, output: Output) -> float:
    async def say(session: Any) -> Output:
        await environment.observe(session, output)
        return output

    verdict = await judge(environment, task, say)
    return math.nan if verdict is None else verdict.reward


_Checker = Callable[[Environment, int], Awaitable[str | None]]
PROMISES: dict[str, _Checker] = {
    "tasks are numbered and the same at every call": _tasks_repeat,
    "task rows are JSON": _rows_are_json,
    "splits share no task": _splits_are_disjoint,
    "prompts end with the user": _prompts_end_with_the_user,
    "tools have a JSON schema": _tools_have_a_schema,
    "a perfect player scores 1": _right_scores_1,
    "no answer, and the question repeated, score 0": _nothing_scores_0,
    "hostile output scores 0 and raises nothing": _hostile_output_scores_0,
    "an unknown tool is a ToolError": _unknown_tools_are_refused,
}

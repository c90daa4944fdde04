"""The tool_choice environment: requests answered by the right calls of the right tools, or by none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from regimen.errors import GymError
from regimen.gym.answers import final_text, squeezed, without_thinking
from regimen.gym.conformance import message, tool_call
from regimen.gym.environment import Environment, Split, Task, ToolError, Verdict
from regimen.gym.environments.tool_choice.compare import Call, Comparison, Schema, arguments_of, compare, read_call
from regimen.gym.environments.tool_choice.tasks import NUM_TASKS, task_rows
from regimen.gym.generated import first_tasks
from regimen.gym.protocol import tool_output_item
from regimen.rollouts.messages import chat_tools


class _Expected(msgspec.Struct):
    """A call that is expected; its arguments as an object or as JSON text."""

    name: str
    arguments: dict[str, Any] | str


class _Row(msgspec.Struct):
    """The verifier's fields of a task row."""

    expected_calls: list[_Expected]
    expected_answer: str | None = None


class ToolChoice(Environment):
    """A request and some tools: the calls that it needs, or the statement that no call is right.

    Option: `seed` of the generated tasks. Splits are the same for all seeds.
    """

    name = "tool_choice"
    max_turns = 6

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.task_seed = seed

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` requests of `split`."""
        return first_tasks(split, num_tasks, NUM_TASKS, partial(task_rows, seed=self.task_seed))

    async def seed(self, task: Task) -> Mapping[str, Schema]:
        """The task's tools."""
        return _tools(task.row)

    async def call(self, session: Mapping[str, Schema], name: str, arguments: dict[str, Any]) -> str:
        """Take a call down; says whether it can be read, never whether it is right."""
        read_call(name, arguments, session)
        return json.dumps({"status": "done"})

    async def solve(self, session: Mapping[str, Schema], task: Task) -> list[dict[str, Any]]:
        """Make every expected call in one turn, or give the answer."""
        row = _read(task.row)
        calls = [
            tool_call(call.name, _object(call.arguments), f"call_{index}")
            for index, call in enumerate(row.expected_calls)
        ]
        outputs = [
            tool_output_item(call["call_id"], await self.call(session, call["name"], json.loads(call["arguments"])))
            for call in calls
        ]
        return [*calls, *outputs, message(row.expected_answer or "Done.")]

    async def verify(self, session: Mapping[str, Schema], task: Task, output: list[dict[str, Any]]) -> Verdict:
        """1 when exactly the expected calls were made, else 0; raises `GymError` for a task that cannot be judged."""
        row = _read(task.row)
        expected = _expected(row, session)
        found = compare(output, expected, session)
        if expected:
            reward = found.num_right == found.num_expected == found.num_calls
            components = _components(found)
        else:
            text = without_thinking(final_text(output) or "")
            said = squeezed(text) == squeezed(row.expected_answer) if row.expected_answer else bool(text.strip())
            reward = said and found.num_calls == 0
            is_silent = float(found.num_calls == 0)
            components = {"right_tools": is_silent, "right_calls": float(said), "no_extra_call": is_silent}
        return Verdict(
            reward=float(reward),
            components=components,
            metrics={
                "num_expected_calls": found.num_expected,
                "num_calls": found.num_calls,
                "num_malformed": found.num_malformed,
                "expected_answer": row.expected_answer,
                "kind": task.row.get("kind"),
                "split": task.row.get("split"),
            },
        )


def _components(found: Comparison) -> dict[str, float]:
    return {
        "right_tools": float(found.has_right_names),
        "right_calls": found.num_right / found.num_expected,
        "no_extra_call": float(found.num_calls == found.num_right),
    }


def _tools(row: dict[str, Any]) -> dict[str, Schema]:
    """The schemas of the task's tools, by name."""
    functions = [tool["function"] for tool in chat_tools(row["responses_create_params"])]
    return {function["name"]: function.get("parameters") or {} for function in functions}


def _read(row: dict[str, Any]) -> _Row:
    try:
        return msgspec.convert(row, _Row)
    except msgspec.ValidationError as error:
        raise GymError(f"the task row: {error}", expected="expected_calls, a list of name and arguments") from error


def _expected(row: _Row, tools: Mapping[str, Schema]) -> list[Call]:
    """The expected calls as their tools read them."""
    try:
        return [read_call(call.name, _object(call.arguments), tools) for call in row.expected_calls]
    except ToolError as error:
        raise GymError(
            f"an expected call cannot be made: {error.message}", fix="mend expected_calls or tools"
        ) from error


def _object(arguments: dict[str, Any] | str) -> Any:
    return arguments_of(arguments) if isinstance(arguments, str) else arguments

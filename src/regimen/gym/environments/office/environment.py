"""The office environment: mail, calendar and tasks of one person, and a request; the state at the end counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from regimen.errors import GymError
from regimen.gym.conformance import message, tool_call
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.environments.office import database
from regimen.gym.environments.office.goals import Goal, compare, read_goals
from regimen.gym.environments.office.tasks import NUM_TASKS, task_rows
from regimen.gym.environments.office.tools import run_tool
from regimen.gym.generated import first_tasks
from regimen.gym.protocol import tool_output_item


class Session(msgspec.Struct, frozen=True):
    """The office of one episode, and what it held in the beginning."""

    office: database.Office
    before: database.State


class Office(Environment):
    """Mail, calendar and tasks in a database of the session, worked on with tools.

    Option: `seed` of the generated tasks. Splits are the same for all seeds.
    """

    name = "office"
    max_turns = 16

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.task_seed = seed

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` jobs of `split`."""
        return first_tasks(split, num_tasks, NUM_TASKS, partial(task_rows, seed=self.task_seed))

    async def seed(self, task: Task) -> Session:
        """An office with the contents of the task."""
        office = database.Office(database.read_contents(task.row.get("office")))
        return Session(office, office.state())

    async def call(self, session: Session, name: str, arguments: dict[str, Any]) -> str:
        """Work in the office; raises `ToolError` with what is wrong with the call."""
        return run_tool(session.office, name, arguments)

    async def verify(self, session: Session | None, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """1 when every goal is met and nothing else has changed, else 0, whatever the model says."""
        goals = read_goals(task.row.get("goals"))
        if session is None:
            raise GymError("there is no office to look at", fix="seed the task first")
        found = compare(session.before, session.office.state(), goals)
        is_done = found.num_met == found.num_goals and found.num_unwanted == 0
        return Verdict(
            reward=float(is_done),
            components={
                "progress": found.num_met / found.num_goals,
                "no_unwanted_change": float(found.num_unwanted == 0),
            },
            metrics={
                "num_goals": found.num_goals,
                "num_goals_met": found.num_met,
                "num_unwanted_changes": found.num_unwanted,
                "kind": task.row.get("kind"),
                "split": task.row.get("split"),
            },
        )

    async def solve(self, session: Session, task: Task) -> list[dict[str, Any]]:
        """Bring about each goal with one call."""
        items: list[dict[str, Any]] = []
        for index, goal in enumerate(read_goals(task.row.get("goals"))):
            name, arguments = call_for(goal)
            made = tool_call(name, arguments, f"call_{index}")
            items += [
                made,
                tool_output_item(made["call_id"], await self.call(session, name, json.loads(made["arguments"]))),
            ]
        return [*items, message("Done.")]

    async def close(self, session: Session) -> None:
        """Free the database."""
        session.office.close()


def call_for(goal: Goal) -> tuple[str, dict[str, Any]]:
    """The call that meets a goal."""
    fields = goal.fields
    match goal.do, goal.table:
        case "add", "emails":
            text = {"to": fields["recipients"], "subject": fields.get("subject", "For you")}
            body = fields["body"]
            said = body if isinstance(body, str) else " ".join(_texts(body.get("contains", [])))
            return "send_email", {**text, "body": said, "reply_to": fields.get("reply_to")}
        case "add", "events":
            return "create_event", fields
        case "add", "tasks":
            return "create_task", {key: value for key, value in fields.items() if key != "status"}
        case "change", "emails":
            return "move_email", {"id": goal.id, **fields}
        case "change", "events":
            return "update_event", {"id": goal.id, **fields}
        case "change", "tasks" if fields == {"status": "done"}:
            return "complete_task", {"id": goal.id}
        case "change", "tasks":
            return "update_task", {"id": goal.id, **fields}
        case "remove", "events":
            return "cancel_event", {"id": goal.id}
        case _:
            raise GymError(f"no tool can {goal.do} {goal.table}", where="goals")


def _texts(value: Sequence[Any]) -> list[str]:
    return [str(part) for part in value]

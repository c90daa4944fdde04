"""The generated jobs: done they score 1 on all, and nothing else does; played by an agent and over the wire."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prompts import asked
from starlette.testclient import TestClient

from regimen.generation.base import Reply, Sampling
from regimen.gym.agent import play_with
from regimen.gym.conformance import judge, message
from regimen.gym.environment import SPLITS, Task, Verdict
from regimen.gym.environments.office import Office
from regimen.gym.environments.office.kinds import KINDS
from regimen.serving.environment import environment_app
from regimen.serving.guard import Guard

ENVIRONMENT = Office()
TASKS = [task for split in SPLITS for task in ENVIRONMENT.tasks(split)]


async def judged(task: Task, work: Callable[[Any, Task], Awaitable[Any]], output: Any = ()) -> Verdict:
    async def play(session: Any) -> Any:
        await work(session, task)
        return list(output)

    verdict = await judge(ENVIRONMENT, task, play)
    assert verdict is not None
    return verdict


def test_there_are_hundreds_over_all_kinds() -> None:
    assert Counter(task.row["split"] for task in TASKS) == {"train": 480, "validation": 96, "test": 192}
    assert Counter(task.row["kind"] for task in TASKS) == dict.fromkeys(KINDS, 40 + 8 + 16)
    prompts = [asked(task) for task in TASKS]
    assert len(set(prompts)) == len(prompts)
    assert not {asked(task) for task in Office(seed=1).tasks("test")} & {asked(t) for t in ENVIRONMENT.tasks("train")}


async def test_the_work_done_scores_1_on_all_tasks() -> None:
    for task in TASKS:
        verdict = await judged(task, ENVIRONMENT.solve)
        assert verdict.reward == 1.0, task.row["goals"]
        assert verdict.components == {"progress": 1.0, "no_unwanted_change": 1.0}


async def nothing(session: Any, task: Task) -> None:
    pass


async def twice(session: Any, task: Task) -> None:
    await ENVIRONMENT.solve(session, task)
    if any(goal["do"] == "add" for goal in task.row["goals"]):
        await ENVIRONMENT.solve(session, with_goals(task, [g for g in task.row["goals"] if g["do"] == "add"]))
    else:
        await ENVIRONMENT.call(session, "create_task", {"title": "done"})


def with_goals(task: Task, goals: list[dict[str, Any]]) -> Task:
    return Task(task.index, {**task.row, "goals": goals})


async def and_a_mail(session: Any, task: Task) -> None:
    await ENVIRONMENT.solve(session, task)
    mail = {"to": ["boss@office.example"], "subject": "Done", "body": "It is done."}
    await ENVIRONMENT.call(session, "send_email", mail)


async def and_a_task(session: Any, task: Task) -> None:
    await ENVIRONMENT.solve(session, task)
    await ENVIRONMENT.call(session, "create_task", {"title": "remember this"})


async def and_a_folder(session: Any, task: Task) -> None:
    await ENVIRONMENT.solve(session, task)
    held = {goal["id"] for goal in task.row["goals"] if goal["do"] != "add"}
    mail = next(mail["id"] for mail in task.row["office"]["emails"] if mail["id"] not in held)
    await ENVIRONMENT.call(session, "move_email", {"id": mail, "folder": "trash"})


async def all_but_one(session: Any, task: Task) -> None:
    await ENVIRONMENT.solve(session, with_goals(task, task.row["goals"][1:])) if task.row["goals"][1:] else None


async def everything_of_a_kind(session: Any, task: Task) -> None:
    """Move, complete, cancel whatever there is, and send the whole mailbox to everybody."""
    texts = " ".join(mail["body"] for mail in task.row["office"]["emails"])
    for contact in task.row["office"]["contacts"]:
        mail = {"to": [contact["address"]], "subject": asked(task)[:200], "body": texts}
        await ENVIRONMENT.call(session, "send_email", mail)
    for mail in task.row["office"]["emails"]:
        await ENVIRONMENT.call(session, "move_email", {"id": mail["id"], "folder": "invoices"})
    for event in task.row["office"]["events"]:
        await ENVIRONMENT.call(session, "cancel_event", {"id": event["id"]})
    for job in task.row["office"]["tasks"]:
        await ENVIRONMENT.call(session, "complete_task", {"id": job["id"]})


async def the_whole_mailbox(session: Any, task: Task) -> None:
    """Stuffing: the right mail with everything that could be meant in it."""
    texts = " ".join(mail["body"] for mail in task.row["office"]["emails"])
    rooms = " ".join(event["location"] for event in task.row["office"]["events"])
    hours = " ".join(f"{hour:02}:00" for hour in range(24))
    for goal in task.row["goals"]:
        if goal["table"] == "emails" and goal["do"] == "add":
            filled = {**goal["fields"], "body": f"{asked(task)} {texts} {rooms} {hours}"[:5000]}
            await ENVIRONMENT.solve(session, with_goals(task, [{**goal, "fields": filled}]))
        else:
            await ENVIRONMENT.solve(session, with_goals(task, [goal]))
    if not any(goal["table"] == "emails" and goal["do"] == "add" for goal in task.row["goals"]):
        await ENVIRONMENT.call(session, "create_task", {"title": asked(task)[:200]})


WRONG = (nothing, twice, and_a_mail, and_a_task, and_a_folder, all_but_one, everything_of_a_kind, the_whole_mailbox)


@pytest.mark.parametrize("work", WRONG, ids=lambda work: work.__name__)
async def test_wrong_work_scores_0_on_all_tasks(work: Any) -> None:
    assert [task.row["goals"] for task in TASKS if (await judged(task, work)).reward != 0.0] == []


async def test_saying_so_is_not_doing_it() -> None:
    for task in TASKS[::12]:
        calls = [{"type": "function_call", "name": "complete_task", "arguments": "{}", "call_id": "c"}]
        for output in ([message("Done.")], [message(json.dumps(task.row["goals"]))], calls):
            assert (await judged(task, nothing, output)).reward == 0.0


async def test_half_the_work_shows_in_the_components() -> None:
    task = next(task for task in TASKS if task.row["kind"] == "postpone")
    verdict = await judged(task, all_but_one)
    assert verdict.components == {"progress": 0.5, "no_unwanted_change": 1.0}
    verdict = await judged(task, and_a_task)
    assert verdict.components == {"progress": 1.0, "no_unwanted_change": 0.0}


class Secretary:
    """A model that knows only what the tools say: it passes on the code of a door."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def chat(self, messages: Any, tools: Any, sampling: Sampling, seed: int) -> Reply:
        request = next(message["content"] for message in messages if message["role"] == "user")
        answers = [json.loads(message["content"]) for message in messages if message["role"] == "tool"]
        name, room = re.match(r"(.+) needs the code for the door of (\w+)\.", request).groups()  # type: ignore[union-attr]
        if len(answers) == 0:
            return called(("search_emails", {"query": f"door {room}"}), ("search_contacts", {"query": name}))
        if len(answers) == 2:
            return called(("read_email", {"id": answers[0][0]["id"]}))
        if len(answers) == 3:
            body = answers[2]["body"]
            return called(("send_email", {"to": [answers[1][0]["address"]], "subject": "Door", "body": body}))
        return Reply(
            message={"role": "assistant", "content": "Sent."},
            stop_reason="stop",
            num_input_tokens=0,
            num_output_tokens=0,
        )

    async def close(self) -> None:
        pass


def called(*calls: tuple[str, dict[str, Any]]) -> Reply:
    made = [
        {"id": "", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for name, arguments in calls
    ]
    content = {"role": "assistant", "content": "", "tool_calls": made}
    return Reply(message=content, stop_reason="stop", num_input_tokens=0, num_output_tokens=0)


async def test_an_agent_that_reads_what_the_tools_say_gets_it_right() -> None:
    tasks = [task for task in TASKS if task.row["kind"] == "pass_on"]
    rows = [await play_with(task, 0, ENVIRONMENT, Secretary(), Sampling(), 0) for task in tasks[:16]]
    assert [row["reward"] for row in rows] == [1.0] * 16
    assert rows[0]["num_tool_calls"] == 4
    assert rows[0]["reward_components"] == {"progress": 1.0, "no_unwanted_change": 1.0}


def test_over_the_wire_each_client_has_its_office() -> None:
    task = next(task for task in TASKS if task.row["kind"] == "complete")
    app = Guard(environment_app(Office()))
    response = {"id": "r", "output": []}
    with TestClient(app, base_url="http://127.0.0.1") as one, TestClient(app, base_url="http://127.0.0.1") as two:
        for client in (one, two):
            assert (seeded := client.post("/seed_session", json=task.row)).status_code == 200, seeded.text
        for goal in task.row["goals"]:
            assert one.post("/complete_task", json={"id": goal["id"]}).status_code == 200
        assert one.post("/complete_task", json={"id": "'; DROP TABLE tasks; --"}).status_code == 400
        assert one.post("/verify", json={**task.row, "response": response}).json()["reward"] == 1.0
        assert two.post("/verify", json={**task.row, "response": response}).json()["reward"] == 0.0

"""The tools, the goals and the sessions of the office."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from regimen.errors import GymError
from regimen.gym.environment import Task, ToolError
from regimen.gym.environments.office import Office as Environment
from regimen.gym.environments.office.database import Contents, Office, read_contents
from regimen.gym.environments.office.goals import changes, compare, read_goals
from regimen.gym.environments.office.tools import MAX_MADE, TOOLS, definitions, run_tool

CONTENTS = {
    "contacts": [{"id": "contact_1", "name": "Ann Lee", "address": "ann@office.example"}],
    "emails": [
        {
            "id": "email_1", "folder": "inbox", "sender": "ann@office.example", "recipients": ["me@office.example"],
            "subject": "Door", "body": "The code is 4711.", "sent_at": "2026-02-20 10:00",
        }
    ],
    "events": [{"id": "event_1", "title": "Talk", "start": "2026-03-03 10:00", "end": "2026-03-03 11:00"}],
    "tasks": [{"id": "task_1", "title": "write", "due": "2026-03-04"}],
}  # fmt: skip


@pytest.fixture
def office() -> Any:
    made = Office(read_contents(CONTENTS))
    yield made
    made.close()


def use(office: Office, name: str, **arguments: Any) -> Any:
    return json.loads(run_tool(office, name, arguments))


def test_every_tool_does_its_work(office: Office) -> None:
    before = office.state()
    assert use(office, "search_contacts", query="lee ann") == CONTENTS["contacts"]
    assert [mail["id"] for mail in use(office, "search_emails", query="CODE door", folder="inbox")] == ["email_1"]
    assert "body" not in use(office, "search_emails")[0]
    assert use(office, "read_email", id="email_1")["body"] == "The code is 4711."
    assert [event["id"] for event in use(office, "list_events", day="2026-03-03")] == ["event_1"]
    assert use(office, "list_events", day="2026-03-04") == []
    assert use(office, "list_tasks", status="done") == []
    assert office.state() == before  # looking changes nothing
    use(office, "send_email", to=[" Ann@office.example"], subject="Code", body="4711", reply_to="email_1")
    use(office, "move_email", id="email_1", folder="archive")
    use(office, "create_event", title="Lunch", start="2026-03-05T12:00", end="2026-03-05 13:00", attendees=["a@b"])
    use(office, "update_event", id="event_1", end="2026-03-03 12:00")
    use(office, "create_task", title="read", due="2026-03-06", priority="high")
    use(office, "update_task", id="task_1", due="2026-03-05")
    use(office, "complete_task", id="task_1")
    after = office.state()
    mail = after["emails"]["email_new_1"]
    assert (mail["folder"], mail["recipients"], mail["body"], mail["reply_to"]) == (
        "sent", ["ann@office.example"], "4711", "email_1",
    )  # fmt: skip
    assert after["emails"]["email_1"]["folder"] == "archive"
    assert after["events"]["event_new_2"]["start"] == "2026-03-05 12:00"
    assert after["events"]["event_1"] | {"end": "2026-03-03 11:00"} == before["events"]["event_1"]
    assert after["tasks"]["task_new_3"]["priority"] == "high"
    assert (after["tasks"]["task_1"]["due"], after["tasks"]["task_1"]["status"]) == ("2026-03-05", "done")
    use(office, "cancel_event", id="event_1")
    assert office.find("events", "event_1") is None


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("drop_table", {}, "unknown tool 'drop_table'"),
        ("read_email", {}, "missing required field `id`"),
        ("read_email", {"id": "email_9"}, "there is no email 'email_9'"),
        ("read_email", {"id": 1}, "Expected `str`"),
        ("read_email", {"id": "email_1", "sql": "x"}, "unknown field `sql`"),
        ("read_email", {"id": "\ud800"}, "surrogates not allowed"),
        ("read_email", ["email_1"], "read_email"),
        ("move_email", {"id": "email_1", "folder": "sent"}, "Invalid enum value 'sent'"),
        ("send_email", {"to": [], "subject": "", "body": ""}, "to holds no addresses"),
        ("send_email", {"to": ["Ann"], "subject": "", "body": ""}, "to holds no addresses"),
        ("send_email", {"to": ["a@b"], "subject": "", "body": "", "reply_to": "x"}, "there is no email 'x'"),
        ("send_email", {"to": ["a@b"], "subject": "", "body": "x" * 5001}, "length <= 5000"),
        ("send_email", {"to": ["a@b"] * 21, "subject": "", "body": ""}, "length <= 20"),
        (
            "create_event",
            {"title": "x", "start": "2026-03-03 10:00", "end": "2026-03-03 10:00"},
            "ends before it begins",
        ),
        ("create_event", {"title": "x", "start": "tomorrow", "end": "2026-03-03 10:00"}, "'tomorrow' is not a time"),
        ("update_event", {"id": "event_1", "start": "2026-03-03 12:00"}, "ends before it begins"),
        ("create_task", {"title": "x", "due": "2026-02-30"}, "'2026-02-30' is not a day"),
        ("create_task", {"title": "x", "priority": "urgent"}, "Invalid enum value"),
        ("list_events", {"day": "%"}, "'%' is not a day"),
    ],
)
def test_refusals_are_for_the_model_and_change_nothing(office: Office, name: str, arguments: Any, text: str) -> None:
    before = office.state()
    with pytest.raises(ToolError, match=text):
        run_tool(office, name, arguments)
    assert office.state() == before


def test_a_sent_mail_stays_and_the_number_of_new_rows_is_bounded(office: Office) -> None:
    for _ in range(MAX_MADE):
        use(office, "send_email", to=["a@b"], subject="", body="")
    with pytest.raises(ToolError, match=f"no more than {MAX_MADE}"):
        use(office, "create_task", title="x")
    with pytest.raises(ToolError, match="stays in its folder"):
        use(office, "move_email", id="email_new_1", folder="trash")


INJECTIONS = (
    "'; DROP TABLE emails; --", '"; DELETE FROM tasks; --', "x' OR '1'='1", "email_1'--", "%", "_", "\x00",
    "1; ATTACH 'x'", "' UNION SELECT * FROM contacts --", "${7*7}", "\\",
)  # fmt: skip


@pytest.mark.parametrize("text", INJECTIONS)
def test_what_a_model_writes_is_never_sql(office: Office, text: str) -> None:
    before = office.state()
    for name in ("read_email", "cancel_event", "complete_task"):
        with pytest.raises(ToolError, match="there is no"):
            use(office, name, id=text)
    assert use(office, "search_emails", query=text) == []
    assert use(office, "search_contacts", query=text) == []
    assert use(office, "search_emails", sender=text) == []
    assert office.state() == before
    use(office, "create_task", title=text)
    use(office, "update_event", id="event_1", title=text, location=text)
    assert office.state()["tasks"]["task_new_1"]["title"] == text
    assert office.state()["events"]["event_1"]["location"] == text
    assert len(office.rows("emails")) == 1


def test_statements_hold_no_value(monkeypatch: pytest.MonkeyPatch, office: Office) -> None:
    """Whatever is called, the statements come from a fixed list."""
    from regimen.gym.environments.office import database

    fixed = {
        *database._INSERT.values(), *database._SELECT.values(), *database._UPDATE.values(), *database._DELETE.values(),
    }  # fmt: skip
    seen: set[str] = set()
    run = Office._run
    monkeypatch.setattr(
        Office, "_run", lambda self, statement, values: (seen.add(statement), run(self, statement, values))[1]
    )
    for text in INJECTIONS:
        use(office, "create_task", title=text)
        use(office, "send_email", to=[f"{text}@b"], subject=text, body=text)
        use(office, "move_email", id="email_1", folder="trash")
    assert len(seen) >= 3
    assert seen <= fixed


def test_tools_have_schemas_in_one_piece() -> None:
    assert [tool["name"] for tool in definitions()] == list(TOOLS)
    assert "$ref" not in json.dumps(definitions())
    definitions()[0]["name"] = "changed"
    assert definitions()[0]["name"] != "changed"


def goal(do: str, table: str, id: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"do": do, "table": table, "id": id, "fields": fields}


MAIL = goal(
    "add", "emails", recipients=["ann@office.example"], body={"contains": ["4711"], "lacks": ["0815"], "max_words": 5}
)


@pytest.mark.parametrize(
    "body, is_met", [("It is 4711", True), ("It is 4712", False), ("4711 or 0815", False), ("4711 " * 6, False)]
)
def test_a_text_is_judged_by_what_it_holds(office: Office, body: str, is_met: bool) -> None:
    before = office.state()
    use(office, "send_email", to=["ann@office.example"], subject="Any", body=body)
    found = compare(before, office.state(), read_goals([MAIL]))
    assert (found.num_met, found.num_unwanted) == ((1, 0) if is_met else (0, 1))


def test_a_change_meets_one_goal_and_undone_work_is_no_change(office: Office) -> None:
    before = office.state()
    goals = read_goals(
        [goal("add", "tasks", title="a"), goal("add", "tasks", title="a"), goal("remove", "events", "event_1")]
    )
    use(office, "create_task", title="a")
    assert compare(before, office.state(), goals).num_met == 1
    use(office, "create_task", title="a")
    use(office, "cancel_event", id="event_1")
    assert compare(before, office.state(), goals).num_met == 3
    use(office, "move_email", id="email_1", folder="trash")
    assert compare(before, office.state(), goals).num_unwanted == 1
    use(office, "move_email", id="email_1", folder="inbox")
    assert compare(before, office.state(), goals).num_unwanted == 0


def test_a_row_that_is_changed_otherwise_too_meets_no_goal(office: Office) -> None:
    before = office.state()
    goals = read_goals([goal("change", "tasks", "task_1", status="done")])
    use(office, "complete_task", id="task_1")
    use(office, "update_task", id="task_1", priority="high")
    assert changes(before, office.state()) == [("change", "tasks", "task_1", {"status": "done", "priority": "high"})]
    found = compare(before, office.state(), goals)
    assert (found.num_met, found.num_unwanted) == (0, 1)


@pytest.mark.parametrize(
    "goals, text",
    [
        (None, "the goals"),
        ([], "no goals"),
        ([{"do": "add"}], "the goals"),
        ([goal("break", "tasks", "task_1")], "a goal is 'break'"),
        ([goal("change", "tasks")], "a goal is 'change' with id None"),
        ([goal("add", "tasks", "task_9")], "a goal is 'add' with id 'task_9'"),
    ],
)
def test_goals_that_are_none(goals: Any, text: str) -> None:
    with pytest.raises(GymError, match=text):
        read_goals(goals)


@pytest.mark.parametrize(
    "contents, text",
    [
        (None, "the contents of the office"),
        ({"files": []}, "unknown field `files`"),
        ({"tasks": [{"id": "a"}]}, "missing required field `title`"),
    ],
)
def test_contents_that_are_none(contents: Any, text: str) -> None:
    with pytest.raises(GymError, match=text):
        read_contents(contents)


def test_ids_are_unique() -> None:
    twice = {"contacts": CONTENTS["contacts"] * 2}
    with pytest.raises(GymError, match="UNIQUE"):
        Office(read_contents(twice))


async def test_sessions_are_apart_and_closed() -> None:
    environment = Environment()
    task = Task(
        0, {"responses_create_params": {"input": "x"}, "office": CONTENTS, "goals": [goal("add", "tasks", title="a")]}
    )
    one, two = await environment.seed(task), await environment.seed(task)
    await environment.call(one, "create_task", {"title": "a"})
    assert (await environment.verify(one, task, [])).reward == 1.0
    assert (await environment.verify(two, task, [])).reward == 0.0
    await environment.close(one)
    await environment.close(one)
    with pytest.raises(GymError, match="the office is closed"):
        await environment.verify(one, task, [])
    with pytest.raises(sqlite3.ProgrammingError):
        one.office._connection.execute("SELECT 1")
    assert (await environment.verify(two, task, [])).reward == 0.0
    await environment.close(two)
    with pytest.raises(GymError, match="there is no office"):
        await environment.verify(None, task, [])


def test_an_empty_office() -> None:
    made = Office(Contents())
    assert made.state() == {"contacts": {}, "emails": {}, "events": {}, "tasks": {}}
    made.close()

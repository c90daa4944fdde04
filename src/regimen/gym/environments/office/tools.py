"""The tools of the office: what a model may do, checked before anything is written.

In: an office, the name of a tool, its arguments. Out: JSON text for the model. Refuses, with `ToolError`: arguments
that the tool does not take or lacks, wrong types, days and times that are none, ids that do not exist, texts that are
too long, and more than `MAX_MADE` new rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal

import msgspec

from regimen.gym.environment import ToolError
from regimen.gym.environments.office.database import Office, Record

MAX_MADE = 50
MAX_SHOWN = 30
ME = "me@office.example"
NOW = "2026-03-02 08:00"

Text = Annotated[str, msgspec.Meta(max_length=200)]
Long = Annotated[str, msgspec.Meta(max_length=5000)]
Addresses = Annotated[list[Text], msgspec.Meta(max_length=20)]
Folder = Literal["inbox", "archive", "invoices", "travel", "trash"]
Priority = Literal["low", "normal", "high"]


class _Tool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Arguments of a tool; the docstring is its description."""


class SearchContacts(_Tool):
    """Find people by a part of their name or address; all without a query."""

    query: Text = ""


class SearchEmails(_Tool):
    """Find mails: by words of the subject or body, the sender's address, the folder. Bodies come with read_email."""

    query: Text = ""
    sender: Text = ""
    folder: Folder | None = None


class ReadEmail(_Tool):
    """A mail with its body."""

    id: Text


class SendEmail(_Tool):
    """Send a mail to addresses, all in one mail; reply_to is the id of the mail that it answers."""

    to: Addresses
    subject: Text
    body: Long
    reply_to: Text | None = None


class MoveEmail(_Tool):
    """Move a mail to another folder."""

    id: Text
    folder: Folder


class ListEvents(_Tool):
    """The events of the calendar; with a day (YYYY-MM-DD) those of that day."""

    day: Text = ""


class CreateEvent(_Tool):
    """Put an event in the calendar. Times are YYYY-MM-DD HH:MM; attendees are addresses."""

    title: Text
    start: Text
    end: Text
    location: Text = ""
    attendees: Addresses = []


class UpdateEvent(_Tool):
    """Change what is given of an event."""

    id: Text
    title: Text | None = None
    start: Text | None = None
    end: Text | None = None
    location: Text | None = None
    attendees: Addresses | None = None


class CancelEvent(_Tool):
    """Take an event out of the calendar."""

    id: Text


class ListTasks(_Tool):
    """The tasks; with a status only those."""

    status: Literal["open", "done"] | None = None


class CreateTask(_Tool):
    """Write a task down; due is a day, YYYY-MM-DD."""

    title: Text
    due: Text | None = None
    priority: Priority = "normal"


class UpdateTask(_Tool):
    """Change what is given of a task."""

    id: Text
    title: Text | None = None
    due: Text | None = None
    priority: Priority | None = None


class CompleteTask(_Tool):
    """Mark a task as done."""

    id: Text


def _search_contacts(office: Office, asked: SearchContacts) -> object:
    return [row for row in office.rows("contacts") if _has(asked.query, row["name"], row["address"])]


def _search_emails(office: Office, asked: SearchEmails) -> object:
    found = [
        {key: value for key, value in row.items() if key not in ("body", "reply_to")}
        for row in office.rows("emails")
        if asked.folder in (None, row["folder"])
        and asked.sender.lower() in row["sender"].lower()
        and _has(asked.query, row["subject"], row["body"])
    ]
    return found[:MAX_SHOWN]


def _has(query: str, *texts: str) -> bool:
    """Whether every word of the query stands in the texts."""
    text = " ".join(texts).lower()
    return all(word in text for word in query.lower().split())


def _read_email(office: Office, asked: ReadEmail) -> object:
    return _row(office, "emails", asked.id)


def _send_email(office: Office, asked: SendEmail) -> object:
    if not asked.to or not all("@" in address for address in asked.to):
        raise ToolError("Error: to holds no addresses; search_contacts finds them")
    if asked.reply_to is not None:
        _row(office, "emails", asked.reply_to)
    to = [address.strip().lower() for address in asked.to]
    mail = {"recipients": to, "subject": asked.subject, "body": asked.body, "reply_to": asked.reply_to}
    return {"sent": _added(office, "emails", {**mail, "folder": "sent", "sender": ME, "sent_at": NOW})}


def _move_email(office: Office, asked: MoveEmail) -> object:
    if _row(office, "emails", asked.id)["folder"] == "sent":
        raise ToolError("Error: a mail that was sent stays in its folder")
    office.change("emails", asked.id, {"folder": asked.folder})
    return {"moved": asked.id}


def _list_events(office: Office, asked: ListEvents) -> object:
    day = _day(asked.day) if asked.day else ""
    rows = [row for row in office.rows("events") if row["start"].startswith(day)]
    return sorted(rows, key=lambda row: (row["start"], row["id"]))[:MAX_SHOWN]


def _create_event(office: Office, asked: CreateEvent) -> object:
    event = {"title": asked.title, "location": asked.location, "attendees": asked.attendees}
    return {"created": _added(office, "events", {**event, **_times(asked.start, asked.end)})}


def _update_event(office: Office, asked: UpdateEvent) -> object:
    row = _row(office, "events", asked.id)
    given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None and name != "id"}
    times = _times(given.get("start", row["start"]), given.get("end", row["end"]))
    office.change("events", asked.id, {**given, **times})
    return {"changed": asked.id}


def _cancel_event(office: Office, asked: CancelEvent) -> object:
    _row(office, "events", asked.id)
    office.remove("events", asked.id)
    return {"cancelled": asked.id}


def _list_tasks(office: Office, asked: ListTasks) -> object:
    return [row for row in office.rows("tasks") if asked.status in (None, row["status"])][:MAX_SHOWN]


def _create_task(office: Office, asked: CreateTask) -> object:
    due = None if asked.due is None else _day(asked.due)
    return {"created": _added(office, "tasks", {"title": asked.title, "due": due, "priority": asked.priority})}


def _update_task(office: Office, asked: UpdateTask) -> object:
    _row(office, "tasks", asked.id)
    given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None and name != "id"}
    if "due" in given:
        given["due"] = _day(given["due"])
    office.change("tasks", asked.id, given)
    return {"changed": asked.id}


def _complete_task(office: Office, asked: CompleteTask) -> object:
    _row(office, "tasks", asked.id)
    office.change("tasks", asked.id, {"status": "done"})
    return {"completed": asked.id}


def _row(office: Office, table: str, id: str) -> Record:
    row = office.find(table, id)
    if row is None:
        raise ToolError(f"Error: there is no {table[:-1]} {id!r}")
    return row


def _added(office: Office, table: str, record: Record) -> str:
    if office.num_made >= MAX_MADE:
        raise ToolError(f"Error: no more than {MAX_MADE} new mails, events and tasks")
    return office.add(table, record)


def _day(text: str) -> str:
    return _moment(text, "%Y-%m-%d", "a day as YYYY-MM-DD")


def _times(start: str, end: str) -> dict[str, str]:
    begin, finish = (_moment(text, "%Y-%m-%d %H:%M", "a time as YYYY-MM-DD HH:MM") for text in (start, end))
    if finish <= begin:
        raise ToolError("Error: the event ends before it begins")
    return {"start": begin, "end": finish}


def _moment(text: str, form: str, expected: str) -> str:
    try:
        return datetime.strptime(text.strip().replace("T", " "), form).strftime(form)
    except ValueError:
        raise ToolError(f"Error: {text[:40]!r} is not {expected}") from None


TOOLS: dict[str, tuple[type[_Tool], Callable[[Office, Any], object]]] = {
    "search_contacts": (SearchContacts, _search_contacts),
    "search_emails": (SearchEmails, _search_emails),
    "read_email": (ReadEmail, _read_email),
    "send_email": (SendEmail, _send_email),
    "move_email": (MoveEmail, _move_email),
    "list_events": (ListEvents, _list_events),
    "create_event": (CreateEvent, _create_event),
    "update_event": (UpdateEvent, _update_event),
    "cancel_event": (CancelEvent, _cancel_event),
    "list_tasks": (ListTasks, _list_tasks),
    "create_task": (CreateTask, _create_task),
    "update_task": (UpdateTask, _update_task),
    "complete_task": (CompleteTask, _complete_task),
}


def run_tool(office: Office, name: str, arguments: object) -> str:
    """Do what a call asks for; the answer is JSON."""
    if name not in TOOLS:
        raise ToolError(f"Error: unknown tool {name[:80]!r}; use {', '.join(TOOLS)}")
    kind, run = TOOLS[name]
    try:
        json.dumps(arguments, ensure_ascii=False).encode()  # half a surrogate pair is no text
        asked = msgspec.convert(arguments, kind)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
        raise ToolError(f"Error: {name}: {str(error)[:200]}") from None
    return json.dumps(run(office, asked), ensure_ascii=False)


def definitions() -> list[dict[str, Any]]:
    """The tools as a task row has them; the list is the caller's."""
    return json.loads(_definitions())


@cache
def _definitions() -> str:
    _, schemas = msgspec.json.schema_components([kind for kind, _ in TOOLS.values()])
    return json.dumps(
        [
            {"type": "function", "name": name, "description": kind.__doc__, "parameters": _bare(schemas[kind.__name__])}
            for name, (kind, _) in TOOLS.items()
        ]
    )


def _bare(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("title", "description")}

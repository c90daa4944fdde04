"""The office of one session: contacts, mail, events and tasks in an SQLite database in memory.

In: the contents of a task row; rows to add, fields to change. Out: rows as dicts, in order; the whole state.
Statements are fixed texts, and every value is bound: nothing that a model writes becomes SQL. Lists, like the
recipients of a mail, are kept as JSON.
Refuses, with `GymError`: contents that do not have the form of `Contents`, and work on a closed office.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any, cast

import msgspec

from regimen.errors import GymError

Record = dict[str, Any]
State = dict[str, dict[str, Record]]  # table -> id -> fields


class Contact(msgspec.Struct, forbid_unknown_fields=True):
    """Somebody with an address."""

    id: str
    name: str
    address: str


class Email(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A mail in a folder."""

    id: str
    folder: str
    sender: str
    recipients: list[str]
    subject: str
    body: str
    sent_at: str
    reply_to: str | None = None


class Event(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An appointment; times are `YYYY-MM-DD HH:MM`."""

    id: str
    title: str
    start: str
    end: str
    location: str = ""
    attendees: list[str] = []


class ToDo(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A task; `due` is a day or nothing."""

    id: str
    title: str
    due: str | None = None
    priority: str = "normal"
    status: str = "open"


class Contents(msgspec.Struct, forbid_unknown_fields=True):
    """What an office holds in the beginning."""

    contacts: list[Contact] = []
    emails: list[Email] = []
    events: list[Event] = []
    tasks: list[ToDo] = []


KINDS: dict[str, type[msgspec.Struct]] = {"contacts": Contact, "emails": Email, "events": Event, "tasks": ToDo}
LISTS = frozenset({"recipients", "attendees"})
_COLUMNS = {table: [field.name for field in msgspec.structs.fields(kind)] for table, kind in KINDS.items()}
# Every statement there is; tables and columns come from the classes above.
_CREATE = {t: f"CREATE TABLE {t} (id TEXT PRIMARY KEY, {', '.join(c[1:])})" for t, c in _COLUMNS.items()}
_INSERT = {
    t: f"INSERT INTO {t} ({', '.join(c)}) VALUES ({', '.join('?' * len(c))})"  # noqa: S608
    for t, c in _COLUMNS.items()
}
_SELECT = {t: f"SELECT {', '.join(c)} FROM {t} ORDER BY rowid" for t, c in _COLUMNS.items()}  # noqa: S608
_UPDATE = {
    (t, c): f"UPDATE {t} SET {c} = ? WHERE id = ?"  # noqa: S608
    for t, columns in _COLUMNS.items()
    for c in columns[1:]
}
_DELETE = {t: f"DELETE FROM {t} WHERE id = ?" for t in _COLUMNS}  # noqa: S608


def read_contents(value: object) -> Contents:
    """The contents in a task row."""
    try:
        return msgspec.convert(value, Contents)
    except msgspec.ValidationError as error:
        raise GymError(f"the contents of the office: {error}", where="office") from error


class Office:
    """A database in memory; `close` frees it."""

    def __init__(self, contents: Contents) -> None:
        # The session's calls come one after the other, but a server may run them on other threads.
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.num_made = 0
        try:
            for table in KINDS:
                self._connection.execute(_CREATE[table])
                for record in getattr(contents, table):
                    self._insert(table, cast("Record", msgspec.to_builtins(record)))
        except sqlite3.IntegrityError as error:
            self.close()
            raise GymError(
                f"the contents of the office: {error}", where="office", expected="ids of their own"
            ) from error

    def rows(self, table: str) -> list[Record]:
        """All rows of a table, in the order in which they were added."""
        found = self._run(_SELECT[table], ())
        return [
            {c: json.loads(v) if c in LISTS else v for c, v in zip(_COLUMNS[table], row, strict=True)} for row in found
        ]

    def find(self, table: str, id: str) -> Record | None:
        """The row of that id."""
        return next((row for row in self.rows(table) if row["id"] == id), None)

    def add(self, table: str, record: Record) -> str:
        """Add a row without an id and return the id that it gets."""
        self.num_made += 1
        id = f"{table[:-1]}_new_{self.num_made}"
        self._insert(table, cast("Record", msgspec.to_builtins(msgspec.convert({**record, "id": id}, KINDS[table]))))
        return id

    def change(self, table: str, id: str, fields: Record) -> None:
        """Set fields of a row."""
        for column, value in fields.items():
            self._run(_UPDATE[table, column], (json.dumps(value) if column in LISTS else value, id))

    def remove(self, table: str, id: str) -> None:
        """Delete a row."""
        self._run(_DELETE[table], (id,))

    def state(self) -> State:
        """Everything that the office holds."""
        return {table: {row["id"]: row for row in self.rows(table)} for table in KINDS}

    def close(self) -> None:
        """Free the database; a second time does nothing."""
        self._connection.close()

    def _insert(self, table: str, record: Record) -> None:
        values = [json.dumps(record[c]) if c in LISTS else record[c] for c in _COLUMNS[table]]
        self._run(_INSERT[table], tuple(values))

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.ProgrammingError as error:
            raise GymError("the office is closed", fix="seed the task again") from error

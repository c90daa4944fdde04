"""The files beside a rollouts file: the task rows with the ground truth, and the failed episodes.

In: the path of `X.jsonl` (or `X.jsonl.gz`, `X.parquet`, …). Out: the paths of `X_materialized_inputs.jsonl` and
`X_failures.jsonl` (or their compressed forms) where they exist, and `TaskIndex`, which finds the task row of a
rollout. The places of the task rows are kept in a small database on disk, so that memory does not grow with them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from regimen.errors import RolloutError
from regimen.rollouts.lines import decode_row, is_blank, line_size
from regimen.rollouts.records import index_of
from regimen.rollouts.sources import FILE_ENDINGS, Kind, kind_of, open_file, open_lines, spool

MATERIALIZED = "_materialized_inputs"
FAILURES = "_failures"
PLACES_AT_A_TIME = 10_000
SETTINGS = ("journal_mode = OFF", "synchronous = OFF", "cache_size = -16000", "temp_store = FILE")

Place = tuple[int, int | None, int, int]


class _Stamps(msgspec.Struct):
    """The two fields of a task row that the index needs; everything else is skipped unread."""

    task_index: int | None = msgspec.field(name="_ng_task_index", default=None)
    rollout_index: int | None = msgspec.field(name="_ng_rollout_index", default=None)


def tasks_beside(path: Path) -> Path | None:
    """The file of task rows that belongs to a rollouts file."""
    return _beside(path, MATERIALIZED)


def failures_beside(path: Path) -> Path | None:
    """The file of failed episodes that belongs to a rollouts file."""
    return _beside(path, FAILURES)


def _beside(path: Path, ending: str) -> Path | None:
    own = next((known for known in FILE_ENDINGS if path.name.endswith(known)), path.suffix)
    stem = path.name.removesuffix(own)
    if stem.endswith((MATERIALIZED, FAILURES)):
        return None
    candidates = (path.with_name(f"{stem}{ending}{suffix}") for suffix in dict.fromkeys((own, *FILE_ENDINGS)))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


class TaskPlaces(msgspec.Struct, frozen=True):
    """Where the rows of one file of task rows stand: the plain file that holds them, and the database of places."""

    rows: str
    database: str
    num_tasks: int
    num_bad: int


def index_tasks(path: Path, folder: Path, name: str) -> TaskPlaces:
    """Read a file of task rows once and keep their places in `folder`, under `name`."""
    rows, database = path, folder / f"{name}.sqlite"
    if kind_of(path) is not Kind.LINES:
        rows = folder / f"{name}.jsonl"
        spool(path, rows)
    bad = [0]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for setting in SETTINGS:
            connection.execute(f"PRAGMA {setting}")
        connection.execute(
            "CREATE TABLE pairs (task INTEGER, rollout INTEGER, offset INTEGER, size INTEGER,"
            " PRIMARY KEY (task, rollout)) WITHOUT ROWID"
        )
        connection.execute("CREATE TABLE tasks (task INTEGER PRIMARY KEY, offset INTEGER, size INTEGER)")
        for places in _batches(_places(rows, bad)):
            firsts = ((task, offset, size) for task, _, offset, size in places)
            connection.executemany("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?)", firsts)
            pairs = (place for place in places if place[1] is not None)
            connection.executemany("INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?)", pairs)
        connection.commit()
        (num_tasks,) = connection.execute("SELECT count(*) FROM tasks").fetchone()
    return TaskPlaces(str(rows), str(database), num_tasks, bad[0])


def _places(path: Path, bad: list[int]) -> Iterator[Place]:
    """The indices and byte range of every task row that has them; `bad[0]` counts the rows that are none."""
    decode = msgspec.json.Decoder(_Stamps).decode
    offset = 0
    with open_lines(path) as lines:
        for line in lines:
            size = line_size(line)
            start, offset = offset, offset + size
            if is_blank(line):
                continue
            stamps = _stamps(line, decode)
            if stamps is None:
                bad[0] += 1
            elif stamps.task_index is not None:
                yield stamps.task_index, stamps.rollout_index, start, size


def _batches(places: Iterable[Place]) -> Iterator[list[Place]]:
    batch: list[Place] = []
    for place in places:
        batch.append(place)
        if len(batch) == PLACES_AT_A_TIME:
            yield batch
            batch = []
    yield batch


def _stamps(line: bytes, decode: Any) -> _Stamps | None:
    try:
        if not line.isascii():
            line.decode()
        stamps = decode(line)
        if all(index is None or -(2**63) <= index < 2**63 for index in (stamps.task_index, stamps.rollout_index)):
            return stamps
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    row = _row(line)
    return None if row is None else _Stamps(index_of(row, "_ng_task_index"), index_of(row, "_ng_rollout_index"))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = decode_row(line)
    except RolloutError:
        return None
    return cast("dict[str, Any]", row) if isinstance(row, dict) else None


class TaskIndex:
    """Finds task rows by task and rollout index, or by task index alone where the pair is not there."""

    def __init__(self, places: TaskPlaces) -> None:
        self._file = open_file(Path(places.rows))
        self._connection = sqlite3.connect(f"{Path(places.database).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        self._connection.execute("PRAGMA cache_size = -16000")

    def place(self, row: dict[str, Any]) -> tuple[int, int] | None:
        """The byte range of the task row that a rollout row belongs to, or None."""
        task, rollout = index_of(row, "_ng_task_index"), index_of(row, "_ng_rollout_index")
        if task is None:
            return None
        find = self._connection.execute
        found = None
        if rollout is not None:
            found = find("SELECT offset, size FROM pairs WHERE task = ? AND rollout = ?", (task, rollout)).fetchone()
        return found or find("SELECT offset, size FROM tasks WHERE task = ?", (task,)).fetchone()

    def find(self, row: Any) -> dict[str, Any] | None:
        """The task row that a rollout row belongs to, or None."""
        place = self.place(cast("dict[str, Any]", row)) if isinstance(row, dict) else None
        if place is None:
            return None
        self._file.seek(place[0])
        return _row(self._file.read(place[1]))

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._connection.close()

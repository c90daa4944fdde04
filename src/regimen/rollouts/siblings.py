"""The files beside a rollouts file: the task rows with the ground truth, and the failed episodes.

In: the path of `X.jsonl`. Out: the paths of `X_materialized_inputs.jsonl` and `X_failures.jsonl` where they exist,
and `TaskIndex`, which finds the task row of a rollout. Holds two numbers per task row in memory, never the rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import msgspec

from regimen.errors import UsageError

MATERIALIZED = "_materialized_inputs"
FAILURES = "_failures"


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
    if path.stem.endswith((MATERIALIZED, FAILURES)):
        return None
    candidate = path.with_name(f"{path.stem}{ending}{path.suffix}")
    return candidate if candidate.is_file() else None


class TaskIndex:
    """Finds task rows by task and rollout index, or by task index alone where the pair is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bad = 0
        self._pairs: dict[tuple[int, int], int] = {}
        self._tasks: dict[int, int] = {}
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
        self._build()

    def _build(self) -> None:
        decode = msgspec.json.Decoder(_Stamps).decode
        offset = 0
        for line in self._file:
            start, offset = offset, offset + len(line)
            if line.isspace():
                continue
            try:
                stamps = decode(line)
            except (msgspec.DecodeError, RecursionError):
                stamps = _slow_stamps(line)
            if stamps is None:
                self.num_bad += 1
                continue
            if stamps.task_index is None:
                continue
            self._tasks.setdefault(stamps.task_index, start)
            if stamps.rollout_index is not None:
                self._pairs[stamps.task_index, stamps.rollout_index] = start

    @property
    def num_tasks(self) -> int:
        """Number of distinct task indices found."""
        return len(self._tasks)

    def find(self, row: Any) -> dict[str, Any] | None:
        """The task row that a rollout row belongs to, or None."""
        if not isinstance(row, dict):
            return None
        row = cast("dict[str, Any]", row)
        task_index, rollout_index = row.get("_ng_task_index"), row.get("_ng_rollout_index")
        if type(task_index) is not int:
            return None
        offset = self._pairs.get((task_index, rollout_index)) if type(rollout_index) is int else None
        if offset is None:
            offset = self._tasks.get(task_index)
        if offset is None:
            return None
        self._file.seek(offset)
        line = self._file.readline()
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return _slow_row(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _slow_row(line: bytes) -> dict[str, Any] | None:
    """A row that only Python's parser takes (it knows NaN), or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", row) if isinstance(row, dict) else None


def _slow_stamps(line: bytes) -> _Stamps | None:
    row = _slow_row(line)
    if row is None:
        return None
    indices = (row.get("_ng_task_index"), row.get("_ng_rollout_index"))
    return _Stamps(*(index if type(index) is int else None for index in indices))

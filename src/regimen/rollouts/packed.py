"""Rows of an index as they are packed on disk: what is sent to other processes, and unpacked where it is needed.

In: records of whole tasks, one after the other. Out: `IndexedRow`s, one by one or task by task, or the records of a
task as they are, for who needs less of them. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import cast

import msgspec

from regimen.rollouts.fields import (
    ENVIRONMENT,
    FLAGS,
    HAS_ROLLOUT_INDEX,
    HAS_TASK_INDEX,
    OUTCOMES,
    RECORD,
    SELECTED,
    SIGN,
    TASK,
    RecordTuple,
)
from regimen.rollouts.indexed import IndexedRow

DEFAULT_ENVIRONMENT = "task"


class PackedRows(msgspec.Struct, frozen=True):
    """Rows by their `records`. `environments` has the names, `ranks` their places: rows of one place and task number
    are of one task.
    """

    records: bytes
    num_rows: int
    num_sampled: int
    environments: list[str | None]
    ranks: list[int]

    def rows(self) -> Iterator[IndexedRow]:
        """The rows, in the order of the records."""
        return map(self.row, self._tuples())

    def tasks(self) -> Iterator[list[IndexedRow]]:
        """The rows of one task at a time."""
        for records in self.records_by_task():
            yield list(map(self.row, records))

    def records_by_task(self) -> Iterator[list[RecordTuple]]:
        """The records of one task at a time."""
        for _, records in groupby(self._tuples(), self._task_key):
            yield list(records)

    def _tuples(self) -> Iterator[RecordTuple]:
        return cast("Iterator[RecordTuple]", RECORD.iter_unpack(self.records))

    def _task_key(self, record: RecordTuple) -> tuple[int, int, int]:
        return self.ranks[record[ENVIRONMENT]], record[FLAGS] & HAS_TASK_INDEX, record[TASK]

    def row(self, record: RecordTuple) -> IndexedRow:
        """What a record says."""
        number, file, line, offset, size, code, flags, outcome, task, rollout, reward, prompt, num_sampled, alike = (
            record
        )
        environment = self.environments[code]
        if flags & HAS_TASK_INDEX:
            task_index = task - SIGN
            task_id = f"{environment or DEFAULT_ENVIRONMENT}/{task_index}"
        else:
            task_index, task_id = None, f"{task:016x}"
        return IndexedRow(
            number,
            file,
            line,
            offset,
            size,
            task_id,
            task_index,
            rollout if flags & HAS_ROLLOUT_INDEX else None,
            environment,
            OUTCOMES[outcome],
            None if reward != reward else reward,
            prompt,
            num_sampled,
            bool(flags & SELECTED),
            alike,
        )

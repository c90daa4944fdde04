"""Records of fixed width, and their order by task.

In: arrays of records, one per good row, in input order. Out: the same records, those of one task together, tasks in
the order of their environment and index. Sorting needs memory for `RUN` records, whatever their number: sorted runs
are written to disk and merged when they are read.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regimen.rollouts.fields import FIELDS, HAS_TASK_INDEX, RECORD, RecordTuple

RUN = 250_000
RECORDS_AT_A_TIME = 4096
RECORDS_OF_A_RUN = 256

DTYPE = np.dtype([(name, code) for name, _, code in FIELDS])

Records = np.ndarray[Any, np.dtype[np.void]]


def read_records(path: Path) -> Iterator[Records]:
    """The records of a file, some thousand at a time, each array free to be changed."""
    with path.open("rb", buffering=0) as file:
        while data := file.read(RECORD.size * RECORDS_AT_A_TIME):
            yield np.frombuffer(bytearray(data), DTYPE)


def tuples_of(records: Records) -> Iterator[RecordTuple]:
    """Records as tuples, in the order of `FIELDS`."""
    return RECORD.iter_unpack(records.tobytes())  # type: ignore[return-value]


class TaskOrder:
    """The records sorted by task; `ranks` gives the place of each environment among them."""

    def __init__(self, records: Iterable[Records], ranks: list[int], path: Path) -> None:
        self._ranks = ranks
        self._path = path
        self._sizes: list[int] = []
        with path.open("wb") as file:
            for run in _runs(records):
                file.write(run[self._sorted_places(run)].tobytes())
                self._sizes.append(len(run))

    def group_key(self, record: RecordTuple) -> tuple[int, bool, int]:
        """What is equal for the records of one task, and smaller for earlier tasks."""
        return self._ranks[record[5]], not record[6] & HAS_TASK_INDEX, record[8]

    def __iter__(self) -> Iterator[RecordTuple]:
        starts = np.cumsum([0, *self._sizes])
        runs = [self._run(int(start), size) for start, size in zip(starts[:-1], self._sizes, strict=True)]
        return runs[0] if len(runs) == 1 else heapq.merge(*runs, key=self._key)

    def _key(self, record: RecordTuple) -> tuple[int, bool, int, int, int]:
        return (*self.group_key(record), record[9], record[0])

    def _sorted_places(self, run: Records) -> Any:
        ranks = np.asarray(self._ranks)[run["environment"]]
        has_no_index = run["flags"] & HAS_TASK_INDEX == 0
        return np.lexsort((run["number"], run["rollout"], run["task"], has_no_index, ranks))

    def _run(self, start: int, size: int) -> Iterator[RecordTuple]:
        step = RECORDS_OF_A_RUN if len(self._sizes) > 1 else RECORDS_AT_A_TIME
        with self._path.open("rb", buffering=0) as file:
            for first in range(start, start + size, step):
                file.seek(first * RECORD.size)
                yield from RECORD.iter_unpack(file.read(min(step, start + size - first) * RECORD.size))  # type: ignore[misc]


def _runs(records: Iterable[Records]) -> Iterator[Records]:
    """The records in arrays of about `RUN`."""
    waiting: list[Records] = []
    num_waiting = 0
    for some in records:
        waiting.append(some)
        num_waiting += len(some)
        if num_waiting >= RUN:
            yield np.concatenate(waiting)
            waiting, num_waiting = [], 0
    if waiting:
        yield np.concatenate(waiting)

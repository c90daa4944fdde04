"""Records of fixed width, and their order by task.

In: arrays of records, one per good row, in input order. Out: the same records, those of one task together, tasks in
the order of their environment and index. Sorting needs memory for `RUN` records, whatever their number: sorted runs
are written to disk and merged when they are read.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from regimen.rollouts.fields import (
    ENVIRONMENT,
    FIELDS,
    FLAGS,
    HAS_TASK_INDEX,
    NUMBER,
    RECORD,
    ROLLOUT,
    TASK,
    RecordTuple,
)

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


class TaskOrder:
    """The records sorted by task; `ranks` gives the place of each environment among them."""

    def __init__(self, records: Iterable[Records], ranks: list[int], path: Path) -> None:
        self._ranks = np.asarray(ranks)
        self._path = path
        self._sizes: list[int] = []
        with path.open("wb") as file:
            for run in _runs(records):
                file.write(run[self._sorted_places(run)].tobytes())
                self._sizes.append(len(run))

    def batches(self, least: int) -> Iterator[Records]:
        """Whole tasks, in batches of at least `least` records; the last may be smaller."""
        waiting = np.zeros(0, DTYPE)
        for records in self._blocks():
            waiting = np.concatenate((waiting, records))
            start = 0
            for end in self.ends(waiting):
                if end - start >= least:
                    yield waiting[start:end]
                    start = end
            waiting = waiting[start:]
        if len(waiting):
            yield waiting

    def ends(self, records: Records) -> list[int]:
        """Where another task begins among sorted records."""
        differs = np.zeros(max(0, len(records) - 1), bool)
        for key in self._group_keys(records):
            differs |= key[1:] != key[:-1]
        return (np.flatnonzero(differs) + 1).tolist()

    def _blocks(self) -> Iterator[Records]:
        if len(self._sizes) == 1:
            yield from read_records(self._path)
            return
        starts = np.cumsum([0, *self._sizes])
        runs = [self._run(int(start), size) for start, size in zip(starts[:-1], self._sizes, strict=True)]
        merged = heapq.merge(*runs, key=self._key)
        while some := list(islice(merged, RECORDS_AT_A_TIME)):
            yield np.array(some, DTYPE)

    def _key(self, record: RecordTuple) -> tuple[int, bool, int, int, int]:
        is_unnamed = not record[FLAGS] & HAS_TASK_INDEX
        return int(self._ranks[record[ENVIRONMENT]]), is_unnamed, record[TASK], record[ROLLOUT], record[NUMBER]

    def _group_keys(self, records: Records) -> tuple[Any, Any, Any]:
        """What is equal for the records of one task, and smaller for earlier tasks."""
        return self._ranks[records["environment"]], records["flags"] & HAS_TASK_INDEX == 0, records["task"]

    def _sorted_places(self, run: Records) -> Any:
        """The sorted places of records that stand in the order of their numbers. A key that all share is left out."""
        ranks, has_no_index, task = self._group_keys(run)
        keys = [key for key in (run["rollout"], task, has_no_index, ranks) if (key != key[0]).any()]
        return np.lexsort(keys) if keys else np.arange(len(run))

    def _run(self, start: int, size: int) -> Iterator[RecordTuple]:
        with self._path.open("rb", buffering=0) as file:
            for first in range(start, start + size, RECORDS_OF_A_RUN):
                file.seek(first * RECORD.size)
                yield from RECORD.iter_unpack(file.read(min(RECORDS_OF_A_RUN, start + size - first) * RECORD.size))  # type: ignore[misc]


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

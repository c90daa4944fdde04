"""Which tasks validate: decided by a seeded hash of each task's identity, never by row.

In: task identities. Out: the set of validation tasks.
A task keeps its side when rows or tasks are added, as long as both sides are reached by the hash alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=1024)  # the rows of a task come one after the other
def task_position(task_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on `task_id` and `seed` alone."""
    digest = hashlib.sha256(f"{seed}\x00{task_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def validation_tasks(task_ids: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """The tasks whose position lies below `fraction`.

    With at least two tasks and a fraction above 0, each side gets at least one task; a single task always trains.
    """
    ordered = sorted(set(task_ids), key=lambda task_id: (task_position(task_id, seed), task_id))
    if fraction <= 0 or len(ordered) < 2:
        return frozenset()
    chosen = [task_id for task_id in ordered if task_position(task_id, seed) < fraction]
    num_chosen = min(max(len(chosen), 1), len(ordered) - 1)
    return frozenset(ordered[:num_chosen])

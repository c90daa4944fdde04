"""Which tasks validate: decided by a seeded hash of each task's identity, never by row.

In: a task's identity. Out: its position; tasks below the fraction validate, so a task keeps its side when rows or tasks
are added. Refuses nothing.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache


@lru_cache(maxsize=1024)  # the rows of a task come one after the other
def task_position(task_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on `task_id` and `seed` alone."""
    digest = hashlib.sha256(f"{seed}\x00{task_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

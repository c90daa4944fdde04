"""Comparing answers in processes of their own, each judgement under a limit of time.

In: a gold answer and another. Out: a `Judgement`, or a `GymError` where judging itself failed: the gold answer cannot
be read, or comparing took too long or too much memory.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from regimen.errors import GymError
from regimen.gym.workers import SECONDS, Workers

SCRIPT = Path(__file__).with_name("worker.py")


class Judgement(msgspec.Struct, frozen=True):
    """Whether the answer equals the gold answer, and whether it could be read at all."""

    equal: bool
    read: bool


class Judges(Workers):
    """Up to `num_workers` processes."""

    def __init__(self, num_workers: int, seconds: float = SECONDS) -> None:
        super().__init__(SCRIPT, num_workers, seconds, task="judging the answer")

    async def judge(self, gold: str, answer: str) -> Judgement:
        """Compare; raises `GymError` when that fails."""
        where = f"comparing {answer[:80]!r} with {gold[:80]!r}"
        found = await self.ask({"gold": gold, "answer": answer}, where)
        if "failure" in found:
            raise GymError(found["failure"], fix="mend the ground truth of this task")
        return Judgement(found["equal"], found["read"])

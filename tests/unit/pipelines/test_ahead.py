"""Playing ahead: which step is played when, what goes wrong there, and how old an episode may be."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from training_processes import run_two

from regimen.errors import GymError, RunError
from regimen.pipelines.ahead import AheadBatches
from regimen.pipelines.batch import Batch


class Source:
    """Batches that know the weights they were played with; step `fails` raises."""

    total_steps = 4

    def __init__(self, fails: int | None = None) -> None:
        self.version, self.fails = 0, fails
        self.played: list[tuple[int, int]] = []
        self.threads: set[str] = set()

    def batch(self, step: int) -> Batch:
        self.threads.add(threading.current_thread().name)
        if step == self.fails:
            raise GymError("no environment")
        self.played.append((step, self.version))
        return Batch([], 0.0, 0.0, weight_version=self.version)


def ahead(source: Source, max_age: int = 1) -> AheadBatches:
    made: Any = source
    return AheadBatches(made, max_age)


def run(source: Source, made: AheadBatches, start: int = 0) -> list[int]:
    """The loop of training: a batch, its update, the weights handed over. The ages of the batches."""
    ages = []
    for step in range(start, source.total_steps):
        ages.append(made.batch(step).age)
        made.settle()
        source.version = step + 1
    made.close()
    return ages


def test_each_step_is_played_once_with_the_weights_before_the_last_update() -> None:
    source = Source()
    assert run(source, ahead(source)) == [0, 1, 1, 1]
    assert source.played == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert all(name.startswith("regimen-ahead") for name in source.threads)


def test_a_resumed_run_begins_with_its_own_weights() -> None:
    source = Source()
    source.version = 2
    assert run(source, ahead(source), start=2) == [0, 1]


def test_what_fails_ahead_is_raised_before_weights_are_handed_over() -> None:
    """All processes hand them over together: one that failed must not wait there for the others."""
    source = Source(fails=2)
    made = ahead(source)
    made.batch(0)
    made.batch(1)
    with pytest.raises(GymError, match="no environment"):
        made.settle()
    made.close()


ONE_OF_TWO = """
from regimen.errors import GymError
from regimen.pipelines.ahead import AheadBatches
from regimen.pipelines.batch import Batch
from regimen.policy.ranks import connected

class Source:
    total_steps = 3

    def __init__(self, ranks):
        self.ranks = ranks

    def batch(self, step):
        if step == 1 and self.ranks.is_first:
            raise GymError("the gym has died")
        self.ranks.gather(step)
        return Batch([], 0.0, 0.0, weight_version=step)

with connected() as ranks:
    made = AheadBatches(Source(ranks.apart()), 1)
    try:
        for step in range(3):
            made.batch(step)
            made.settle()
            ranks.gather(step)
    finally:
        made.close()
"""


def test_a_process_whose_episodes_fail_ahead_ends_the_others() -> None:
    _, said = run_two("-c", ONE_OF_TWO, timeout=120)
    assert "GymError: the gym has died" in said[0]
    assert "OtherRankError: another process failed first" in said[1]


def test_episodes_that_are_too_old_stop_the_run() -> None:
    source = Source()
    made = ahead(source)
    made.batch(0)
    made.batch(1)
    made.settle()  # step 2 is there, and no weights were handed over
    with pytest.raises(RunError, match=r"step 3: an episode was played 2 steps ago; expected at most 1"):
        made.batch(2)
    made.close()

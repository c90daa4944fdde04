"""Collecting rollouts: every task so many times, many at once, each row on disk as soon as its episode ends.

In: tasks, an environment, a generation, a renderer. Out: a `Collection`, and beside `X.jsonl` the task rows, the
failures and the aggregate metrics. A failed episode goes to the failures and ends nothing; a killed run loses the
episodes in flight, and `resume` plays exactly the missing ones. Refuses: existing output (unless resuming or asked to
overwrite), resuming what was collected otherwise, and to go on when most episodes fail.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from regimen.errors import GymError, UsageError
from regimen.generation.base import Generation, Sampling
from regimen.gym.agent import Limits, Renderer, episode_seed, play
from regimen.gym.environment import Environment, Task
from regimen.gym.protocol import is_failure
from regimen.gym.store import Pair, Store, check_output, pair_of

__all__ = [
    "Collection",
    "Player",
    "check_failures",
    "check_output",
    "collect_episodes",
    "collect_rollouts",
    "episode_seed",
    "identity_of",
    "settings_of",
]

Row = dict[str, Any]
MAX_FAILURE_RATE = 0.5
MIN_EPISODES = 20  # before the failure rate says anything


class Player(msgspec.Struct, frozen=True, kw_only=True):
    """Who plays: the name rows carry, what every row tells of its making, what else must be the same on resuming."""

    name: str
    identity: Row
    settings: Row
    play: Callable[[Task, int], Awaitable[Row]]


class Collection(msgspec.Struct, kw_only=True):
    """What was collected. `rows` and `failures` stand in order of task and repeat, resumed ones included."""

    rows: list[Row]
    failures: list[Row]
    num_resumed: int = 0
    seconds: float = 0.0

    @property
    def num_episodes(self) -> int:
        """Finished and failed episodes together."""
        return len(self.rows) + len(self.failures)

    @property
    def mean_reward(self) -> float | None:
        """Mean reward of the finished episodes; failures are not zeros."""
        return sum(row["reward"] for row in self.rows) / len(self.rows) if self.rows else None


async def collect_rollouts(
    tasks: Sequence[Task],
    num_repeats: int,
    environment: Environment,
    generation: Generation,
    renderer: Renderer,
    sampling: Sampling,
    *,
    seed: int = 0,
    step: int = 0,
    concurrency: int = 64,
    limits: Limits | None = None,
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_row: Callable[[Row], None] | None = None,
    model_name: str = "policy",
    max_failure_rate: float = MAX_FAILURE_RATE,
) -> Collection:
    """Play every task `num_repeats` times with a generation in this process; see `collect_episodes`."""

    async def one(task: Task, repeat: int) -> Row:
        return await play(
            task, repeat, environment, generation, renderer, sampling, seed, limits, step=step, model_name=model_name
        )

    ends = {
        "stop_ids": sorted(sampling.stop_ids or renderer.stop_ids),
        "max_sequence_length": (limits or Limits()).max_sequence_length,
    }
    player = Player(
        name=environment.name,
        identity=identity_of(seed, renderer.fingerprint, renderer.template_fingerprint, sampling, model_name),
        settings={**ends, **settings_of(sampling, limits or Limits(), environment)},
        play=one,
    )
    return await collect_episodes(
        tasks,
        num_repeats,
        player,
        concurrency=concurrency,
        output=output,
        resume=resume,
        overwrite=overwrite,
        on_row=on_row,
        max_failure_rate=max_failure_rate,
    )


async def collect_episodes(
    tasks: Sequence[Task],
    num_repeats: int,
    player: Player,
    *,
    concurrency: int = 64,
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_row: Callable[[Row], None] | None = None,
    max_failure_rate: float = MAX_FAILURE_RATE,
) -> Collection:
    """Play every task `num_repeats` times; `on_row` hears of each episode as it ends, failures included.

    Episodes start in the order of tasks and repeats. Without `output` nothing is written.
    Raises `UsageError` for existing output, `GymError` when more than `max_failure_rate` of the episodes fail.
    """
    started = time.monotonic()
    pairs = {(task.index, repeat): task for task in tasks for repeat in range(num_repeats)}
    if len(pairs) != len(tasks) * num_repeats:
        raise UsageError("two tasks have the same index", expected="one index per task")
    store = Store(output, resume, overwrite, player.name) if output else None
    done = store.open(pairs, player.identity, {**player.identity, **player.settings}) if store else []
    finished = {pair_of(row) for row in done}

    async def one(pair: Pair, task: Task) -> Row:
        return await player.play(task, pair[1])

    collection = Collection(rows=list(done), failures=[], num_resumed=len(done))
    missing = iter([(pair, task) for pair, task in pairs.items() if pair not in finished])
    try:
        await _play_all(missing, one, concurrency, _Recorder(collection, store, on_row, max_failure_rate))
    finally:
        if store:
            store.close()
    collection.rows.sort(key=pair_of)
    collection.failures.sort(key=pair_of)
    collection.seconds = time.monotonic() - started
    if store:
        store.finish(collection.rows, collection.failures)
    return collection


async def _play_all(
    missing: Iterator[tuple[Pair, Task]],
    one: Callable[[Pair, Task], Any],
    concurrency: int,
    recorder: _Recorder,
) -> None:
    """Let `concurrency` workers take episodes from one queue; the first error stops them all."""

    async def work() -> None:
        for pair, task in missing:
            recorder.take(await one(pair, task))

    workers = [asyncio.create_task(work()) for _ in range(max(1, concurrency))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    recorder.judge(final=True)


class _Recorder:
    """Takes finished episodes: counts, writes, reports, and stops the run when most fail."""

    def __init__(
        self,
        collection: Collection,
        store: Store | None,
        on_row: Callable[[Row], None] | None,
        max_failure_rate: float,
    ) -> None:
        self.collection = collection
        self.store = store
        self.on_row = on_row
        self.max_failure_rate = max_failure_rate
        self.num_played = 0

    def take(self, row: Row) -> None:
        self.num_played += 1
        (self.collection.failures if is_failure(row) else self.collection.rows).append(row)
        if self.store:
            self.store.write(row)
        if self.on_row:
            self.on_row(row)
        self.judge(final=False)

    def judge(self, *, final: bool) -> None:
        """See `check_failures`."""
        where = str(self.store.files.failures) if self.store else None
        check_failures(self.collection.failures, self.num_played, self.max_failure_rate, final=final, where=where)


def check_failures(
    failures: list[Row], num_played: int, max_failure_rate: float, *, final: bool, where: str | None
) -> None:
    """Raise `GymError` when too many episodes failed; at the end also when all of a few did."""
    enough = num_played >= MIN_EPISODES
    too_many = enough and len(failures) > max_failure_rate * num_played
    all_of_few = final and not enough and bool(failures) and len(failures) == num_played
    if not too_many and not (all_of_few and max_failure_rate < 1):
        return
    last = failures[-1]
    raise GymError(
        f"{len(failures)} of {num_played} episodes failed, the last with {last['_ng_failure_class']}: "
        f"{last['_ng_failure_type']}: {last['_ng_failure_message']}",
        where=where,
        expected=f"at most {max_failure_rate:.0%}",
        fix="mend the cause, then collect again with resume",
    )


def identity_of(
    seed: int, tokenizer: str | None, template: str | None, sampling: Sampling, model_name: str | None
) -> Row:
    """What every row tells of its making."""
    return {
        "model": model_name,
        "seed": seed,
        "tokenizer": tokenizer,
        "template": template,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_new_tokens,
    }


def settings_of(sampling: Sampling, limits: Limits, environment: Environment) -> Row:
    """What changes episodes and stands in no row."""
    turns = limits.max_turns or environment.max_turns
    return {"top_k": sampling.top_k, "max_turns": turns, "judged_by": dict(environment.judged_by)}

"""Collecting rollouts: every task so many times, many at once, each row on disk as soon as its episode ends.

In: tasks, an environment, a generation, a renderer. Out: a `Collection`, and beside `X.jsonl` the task rows, the
failures and the aggregate metrics. A failed episode goes to the failures and ends nothing; a killed run loses the
episodes in flight, and `resume` plays exactly the missing ones. Refuses: existing output (unless resuming or asked to
overwrite), resuming what was collected otherwise, and to go on when most episodes fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from regimen.errors import GymError, RolloutError, RunError, UsageError
from regimen.generation.base import Generation, Sampling
from regimen.gym.agent import Limits, Renderer, episode_seed, play
from regimen.gym.aggregate import aggregate_metrics
from regimen.gym.environment import Environment, Task
from regimen.gym.protocol import Files, files_of, is_failure, materialized_row
from regimen.rollouts.writer import JsonLinesWriter, write_rows_atomically

__all__ = ["Collection", "check_failures", "check_output", "collect_rollouts", "episode_seed", "write_collection"]

Row = dict[str, Any]
Pair = tuple[int, int]
MAX_FAILURE_RATE = 0.5
MIN_EPISODES = 20  # before the failure rate says anything


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
    """Play every task `num_repeats` times; `on_row` hears of each episode as it ends, failures included.

    Episodes start in the order of tasks and repeats. Without `output` nothing is written.
    Raises `UsageError` for existing output, `GymError` when more than `max_failure_rate` of the episodes fail.
    """
    started = time.monotonic()
    pairs = {(task.index, repeat): task for task in tasks for repeat in range(num_repeats)}
    if len(pairs) != len(tasks) * num_repeats:
        raise UsageError("two tasks have the same index", expected="one index per task")
    store = _Store(output, resume, overwrite, environment.name) if output else None
    identity = _identity(seed, renderer, sampling, model_name)
    ends = _ends(sampling, renderer, limits or Limits(), environment)
    done = store.open(pairs, identity, {**identity, **ends}) if store else []
    finished = {_pair(row) for row in done}

    async def one(pair: Pair, task: Task) -> Row:
        return await play(
            task, pair[1], environment, generation, renderer, sampling, seed, limits, step=step, model_name=model_name
        )

    collection = Collection(rows=list(done), failures=[], num_resumed=len(done))
    missing = iter([(pair, task) for pair, task in pairs.items() if pair not in finished])
    try:
        await _play_all(missing, one, concurrency, _Recorder(collection, store, on_row, max_failure_rate))
    finally:
        if store:
            store.close()
    collection.rows.sort(key=_pair)
    collection.failures.sort(key=_pair)
    collection.seconds = time.monotonic() - started
    if store:
        store.finish(collection)
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
        store: _Store | None,
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


class _Store:
    """The files of a collection."""

    def __init__(self, output: Path, resume: bool, overwrite: bool, environment: str) -> None:
        self.files: Files = files_of(output)
        self.resume = resume
        self.overwrite = overwrite
        self.environment = environment
        self._rows: JsonLinesWriter | None = None
        self._failures: JsonLinesWriter | None = None

    def open(self, pairs: dict[Pair, Task], identity: Row, settings: Row) -> list[Row]:
        """Check and prepare the files; returns the rows of `pairs` that are already there.

        `identity` is what every row tells of its making, `settings` all that must be the same on resuming.
        """
        files = self.files
        existing = check_output(files.rollouts, resume=self.resume, overwrite=self.overwrite)
        kept: list[Row] = []
        if self.resume:
            self._check_settings(settings)
            kept = self._resume(pairs, identity)
        else:
            for path in existing:
                path.unlink()
        if not (self.resume and existing):
            _write_json(files.settings, settings)
        if not self.resume:
            self._write_tasks(pairs, {})
        self._rows = JsonLinesWriter(files.rollouts)
        self._failures = JsonLinesWriter(files.failures)
        return kept

    def _check_settings(self, settings: Row) -> None:
        """Refuse settings that are not those of the file; collections without it tell theirs in the rows alone."""
        path = self.files.settings
        if not path.exists():
            return
        try:
            earlier = cast("object", json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RunError(f"not JSON ({error})", where=str(path)) from None
        _refuse_others(cast("Row", earlier) if isinstance(earlier, dict) else {}, settings, str(path))

    def _resume(self, pairs: dict[Pair, Task], identity: Row) -> list[Row]:
        self._write_tasks(pairs, {_pair(row): row for row in read_complete_lines(self.files.tasks)})
        rows = read_complete_lines(self.files.rollouts)
        for line, row in enumerate(rows, 1):
            _check_same(row, identity, f"{self.files.rollouts}:{line}")
        found = {_pair(row): row for row in rows}
        failed = [row for row in read_complete_lines(self.files.failures) if _pair(row) not in pairs]
        write_rows_atomically(self.files.failures, failed, overwrite=True)
        return [row for pair, row in found.items() if pair in pairs]

    def _write_tasks(self, pairs: dict[Pair, Task], earlier: dict[Pair, Row]) -> None:
        rows = dict(earlier)
        for pair, task in pairs.items():
            row = materialized_row(task.row, *pair, self.environment)
            if pair in earlier and earlier[pair] != json.loads(json.dumps(row)):
                raise UsageError(
                    f"task {pair[0]} differs from the one collected before",
                    where=str(self.files.tasks),
                    fix="resume with the environment, options, split and seed of the first run",
                )
            rows[pair] = row
        write_rows_atomically(self.files.tasks, [rows[pair] for pair in sorted(rows)], overwrite=True)

    def write(self, row: Row) -> None:
        """Append an episode to the rollouts or to the failures."""
        writer = self._failures if is_failure(row) else self._rows
        if writer is None:
            raise RunError("the collection's files are not open", where=str(self.files.rollouts))
        writer.write(row)

    def close(self) -> None:
        """Put everything on disk."""
        for writer in (self._rows, self._failures):
            if writer:
                writer.close()

    def finish(self, collection: Collection) -> None:
        """Write the aggregate metrics."""
        entries = aggregate_metrics(collection.rows, self.environment, len(collection.failures))
        _write_json(self.files.metrics, entries)


def write_collection(output: Path, collection: Collection, tasks: Sequence[Task], num_repeats: int, name: str) -> None:
    """The files that `collect_rollouts` writes as it goes, of a collection that is whole; existing ones are replaced.

    `name` is that of the environment.
    """
    files = files_of(output)
    pairs = [(task.index, repeat, task) for task in tasks for repeat in range(num_repeats)]
    rows = [
        materialized_row(task.row, index, repeat, name) for index, repeat, task in sorted(pairs, key=lambda p: p[:2])
    ]
    write_rows_atomically(files.tasks, rows, overwrite=True)
    write_rows_atomically(files.failures, collection.failures, overwrite=True)
    write_rows_atomically(files.rollouts, collection.rows, overwrite=True)
    _write_json(files.metrics, aggregate_metrics(collection.rows, name, len(collection.failures)))


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def check_output(output: Path, *, resume: bool, overwrite: bool) -> list[Path]:
    """The files of a collection that exist; raises `UsageError` when nobody said what to do with them."""
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other")
    if output.is_dir():
        raise UsageError(
            "the output is a folder", where=str(output), expected="the name of a file, like rollouts.jsonl"
        )
    files = files_of(output)
    listed = (files.rollouts, files.tasks, files.failures, files.metrics, files.settings)
    existing = [path for path in listed if path.exists()]
    if existing and not (resume or overwrite):
        raise UsageError(
            "the file exists",
            where=str(existing[0]),
            fix="continue it with resume, replace it with overwrite, or choose another output",
        )
    return existing


def read_complete_lines(path: Path) -> list[Row]:
    """The rows of a JSON lines file; [] where there is none. A torn last line, left by a kill, is not a row."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = cast("object", json.loads(line))
            if not isinstance(row, dict):
                raise ValueError("the line is not an object")
            _pair(cast("Row", row))
        except (ValueError, KeyError) as error:
            if number == len(lines):
                break
            raise RolloutError(
                f"not a row of a collection ({error})", where=f"{path}:{number}", fix="repair or remove the line"
            ) from None
        rows.append(cast("Row", row))
    return rows


def _identity(seed: int, renderer: Renderer, sampling: Sampling, model_name: str) -> Row:
    return {
        "model": model_name,
        "seed": seed,
        "tokenizer": renderer.fingerprint,
        "template": renderer.template_fingerprint,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_new_tokens,
    }


def _ends(sampling: Sampling, renderer: Renderer, limits: Limits, environment: Environment) -> Row:
    """What changes episodes and stands in no row."""
    return {
        "top_k": sampling.top_k,
        "stop_ids": sorted(sampling.stop_ids or renderer.stop_ids),
        "max_turns": limits.max_turns or environment.max_turns,
        "max_sequence_length": limits.max_sequence_length,
    }


def _check_same(row: Row, identity: Row, where: str) -> None:
    """Refuse to mix rows that were collected otherwise."""
    earlier: Row = {**row.get("responses_create_params", {}), **row.get("regimen", {})}
    earlier["model"] = row.get("response", {}).get("model")
    _refuse_others(earlier, identity, where)


def _refuse_others(earlier: Row, now: Row, where: str) -> None:
    for key, value in now.items():
        if key in earlier and earlier[key] != value:
            raise UsageError(
                f"was collected with {key} {earlier[key]!r}, now it is {value!r}",
                where=where,
                fix="resume with the settings of the first run, or choose another output",
            )


def _pair(row: Row) -> Pair:
    return row["_ng_task_index"], row["_ng_rollout_index"]

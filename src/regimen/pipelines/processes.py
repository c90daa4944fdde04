"""What training does differently when it is many processes: joining them, sharing episodes, a folder that one writes.

In: a configuration; what each process made. Out: the processes joined, everybody's episodes, checkpoints written
together. Every process runs the same loop on the same batches; the first one alone writes and prints.
Refuses: being started as one of many processes by a configuration for one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from regimen.config.schema import TrainConfig
from regimen.errors import UsageError
from regimen.gym.collect import MAX_FAILURE_RATE, Collection, check_failures
from regimen.gym.environment import Task
from regimen.gym.store import write_whole
from regimen.policy.ranks import Ranks, connected, current_ranks


@contextmanager
def joined(config: TrainConfig) -> Generator[Ranks]:
    """The processes of this run while the block runs: this one alone without `policy.dtensor_cfg.enabled`."""
    if config.policy.dtensor_cfg.enabled:
        with connected() as ranks:
            yield ranks
        return
    number = os.environ.get("WORLD_SIZE", "1")
    if number != "1" and current_ranks().size == 1:
        raise UsageError(
            f"this is one of {number} processes, but the configuration is for one",
            where="policy.dtensor_cfg.enabled",
            fix="set policy.dtensor_cfg.enabled=true, or start one process without torchrun",
        )
    yield Ranks()


def pooled(
    played: Collection, ranks: Ranks, tasks: list[Task], num_repeats: int, environment: str, output: Path | None
) -> Collection:
    """The episodes of all processes, in order of task and repeat; the first process writes them to `output`."""
    parts = [msgspec.convert(part, Collection) for part in ranks.gather(msgspec.to_builtins(played))]
    everything = Collection(
        rows=sorted((row for part in parts for row in part.rows), key=_place),
        failures=sorted((row for part in parts for row in part.failures), key=_place),
        seconds=max(part.seconds for part in parts),
    )
    if output is not None and ranks.is_first:
        write_whole(output, everything.rows, everything.failures, tasks, num_repeats, environment)
    number = everything.num_episodes
    check_failures(everything.failures, number, MAX_FAILURE_RATE, final=True, where=str(output) if output else None)
    return everything


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["_ng_task_index"], row["_ng_rollout_index"]


def write_together(write: Callable[[Path], None], folder: Path, ranks: Ranks) -> None:
    """`write` into `folder`, on every process between the same two moments."""
    ranks.wait()  # the first process has cleared what stood there
    write(folder)
    ranks.wait()

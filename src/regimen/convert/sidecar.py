"""The lines that stand beside training rows: where each came from, and the token ids that were sampled.

In: episodes and tasks. Out: `EpisodeRecord`, `PairRecord`, `TaskRecord`, one line per row of the file beside them.
Refuses: a sidecar line of another version or shape (`ConvertError`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from regimen.convert.episodes import Episode
from regimen.errors import ConvertError
from regimen.rollouts.records import Source
from regimen.rollouts.turns import TokenSequence

VERSION = 1


class EpisodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Beside an SFT row, and each side of a DPO pair.

    `sequences` are empty when the rollout had no ids, or when they say more than the row (dropped reasoning).
    `num_prompt_messages` tells where the row's prompt ends: assistant messages before it are examples the model
    was given and never train.
    """

    version: int = VERSION
    source: Source
    task_id: str
    task_index: int | None
    rollout_index: int | None
    reward: float
    tokenizer: str | None
    template: str | None
    num_prompt_messages: int
    sequences: list[TokenSequence]


class PairRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Beside a DPO row. `shared_messages` counts the leading messages, prompt included, that both sides have."""

    version: int = VERSION
    chosen: EpisodeRecord
    rejected: EpisodeRecord
    shared_messages: int = 0


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Beside a GRPO row: how often the task was solved, over how many scored rollouts, and where they stand.

    `truth` says where the verifier's fields come from: the task row, the rollout rows, or none were found.
    """

    version: int = VERSION
    task_id: str
    task_index: int | None
    pass_rate: float
    mean_reward: float
    num_rollouts: int
    truth: str
    source: Source


Record = EpisodeRecord | PairRecord | TaskRecord
RecordType = TypeVar("RecordType", EpisodeRecord, PairRecord, TaskRecord)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One training row with its task and environment, and the rollout rows it was made of (path, line);
    `other_task_id` is that of the rejected side of a pair across tasks.

    The sidecar line is made when it is asked for, so that unpacked token ids are never all in memory.
    """

    row: dict[str, object]
    make_record: Callable[[], Record]
    task_id: str
    keys: list[tuple[str, int]]
    environment: str | None = None
    other_task_id: str | None = None

    @property
    def record(self) -> Record:
        """The sidecar line."""
        return self.make_record()


def record_of(episode: Episode) -> EpisodeRecord:
    """The sidecar line of an episode."""
    return EpisodeRecord(
        source=episode.source,
        task_id=episode.task_id,
        task_index=episode.task_index,
        rollout_index=episode.rollout_index,
        reward=episode.reward,
        tokenizer=episode.tokenizer,
        template=episode.template,
        num_prompt_messages=len(episode.prompt),
        sequences=episode.sequences,
    )


def read_sidecar(path: Path, kind: type[RecordType]) -> Iterator[RecordType]:
    """The lines of a sidecar file as `kind`; raises `ConvertError` naming the line that is not one."""
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise ConvertError(
                    f"not a {kind.__name__}: {error}",
                    where=f"{path}:{number}",
                    fix="convert the rollouts again with this version",
                ) from error
            if record.version != VERSION:
                raise ConvertError(f"version {record.version}", where=f"{path}:{number}", expected=f"{VERSION}")
            yield record

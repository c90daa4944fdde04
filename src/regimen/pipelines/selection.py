"""The second pass of a conversion over some tasks: the rows that selection needs are read whole and become examples.

In: a `Work`, tasks of the index by their rows, and the `Recipe` that all pieces share. Out: a `Stage`, which makes the
examples of a task after the other and counts every row.
Runs in any process: everything it needs travels with the work. A row that only the whole reading finds broken comes
back as a `BadRow`, counted as quarantined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from regimen.convert import dpo, grpo, sft
from regimen.convert.episodes import Episode, RowKey, by_task, read_episode
from regimen.convert.ledger import FAILED, Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.pairs import TOLERANCE, Pair, Paired
from regimen.convert.screen import Screen
from regimen.convert.sidecar import Example
from regimen.convert.split import task_position
from regimen.errors import RolloutError
from regimen.rollouts.indexed import IndexedRow, RowReader
from regimen.rollouts.packed import PackedRows
from regimen.rollouts.records import Source
from regimen.rollouts.report import BadRow, bad_row
from regimen.rollouts.writer import encode_row

if TYPE_CHECKING:
    from regimen.convert.near import Evaluation

SIDES: tuple[str, ...] = ("train", "val")
Made = TypeVar("Made", Episode, grpo.TaskRollout)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What all pieces share. `options` are resolved; `moved` names tasks whose side the hash alone does not decide.

    `alike` names the fields that the index has hashed.
    """

    to: str
    options: ConvertOptions
    reader: RowReader
    files: list[str]
    alike: frozenset[str] = frozenset()
    has_indices: bool = False
    moved: dict[str, str] = {}

    def key(self, row: IndexedRow) -> RowKey:
        """The row's identity in the ledger."""
        return self.files[row.file], row.line

    def side(self, task_id: str) -> str:
        """Where the examples of a task go."""
        validates = task_position(task_id, self.options.seed) < self.options.validation_fraction
        return self.moved.get(task_id) or SIDES[validates]


class Work(msgspec.Struct, kw_only=True):
    """One piece: whole tasks, and what was decided over all of them; or pairs of rows of different tasks.

    `limits` rows stay of each task (balance), each task stands `copies` times (mix), `awaited` rows have a partner in
    another task. With a `folder`, what is much is left there as files.
    """

    recipe: Recipe
    tasks: PackedRows | None = None
    limits: dict[str, int] | None = None
    copies: dict[str, int] | None = None
    awaited: frozenset[RowKey] = frozenset()
    pairs: list[tuple[IndexedRow, IndexedRow]] = []
    folder: str | None = None

    @property
    def groups(self) -> Iterator[list[IndexedRow]]:
        """The rows of one task after the other."""
        return iter(()) if self.tasks is None else self.tasks.tasks()


class Stage:
    """A piece of work under way."""

    def __init__(self, work: Work) -> None:
        self.work, self.recipe, self.options = work, work.recipe, work.recipe.options
        self.ledger = Ledger()
        self.screen = Screen(self.options, _evaluation(self.options.against, self.options.against_similarity))
        self.reader = work.recipe.reader
        self.bad: list[BadRow] = []
        self.prompt_of: dict[RowKey, str] = {}
        self.tokens_of: dict[RowKey, int] = {}
        self.tokenizers: Counter[str] = Counter()
        self.templates: Counter[str] = Counter()
        self.task_reader = grpo.TaskReader()
        self._last: Episode | None = None

    def scored(self, group: Sequence[IndexedRow]) -> list[IndexedRow]:
        """The rows of a task that go on; failures and screened rows are counted."""
        going: list[IndexedRow] = []
        for row in group:
            if row.reward is None:
                self.ledger.count(self.recipe.key(row), f"{FAILED}{row.outcome}", row.num_sampled)
            elif self.screen.is_idle or not self._is_screened(row):
                going.append(row)
        return going

    def _is_screened(self, row: IndexedRow) -> bool:
        try:
            rollout = self.reader.rollout(row)
        except RolloutError as error:
            self._set_aside(row, error)
            return True
        bucket = self.screen.bucket_of(rollout)
        if bucket is not None:
            self.ledger.count(self.recipe.key(row), bucket, row.num_sampled)
        return bucket is not None

    def _set_aside(self, row: IndexedRow, error: RolloutError) -> None:
        key = self.recipe.key(row)
        self.bad.append(bad_row(self.reader.line(row), Source(*key), str(error)))
        self.ledger.count(key, "quarantined", row.num_sampled)

    def made(self, row: IndexedRow, make: Callable[..., Made], *like: Made | None) -> Made | None:
        """The record that `make` makes of a row; None where it is broken, which is counted. `like` is for `make`."""
        try:
            record = make(self.reader, row, *like)
            if self.reader.met_odd_rows:  # numbers that JSON has no words for
                encode_row(record.written)
        except RolloutError as error:
            self._set_aside(row, error)
            return None
        key = record.key
        self.prompt_of[key], self.tokens_of[key] = record.prompt_key, row.num_sampled
        self.count_stamp(record.tokenizer, record.template)
        return record

    def count_stamp(self, tokenizer: str | None, template: str | None) -> None:
        """Count the fingerprints that a row was stamped with."""
        if tokenizer:
            self.tokenizers[tokenizer] += 1
        if template:
            self.templates[template] += 1

    def episodes(self, rows: Sequence[IndexedRow]) -> list[Episode]:
        """The rows as episodes; broken ones are counted."""
        made: list[Episode] = []
        for row in rows:
            if episode := self.made(row, read_episode, self._last):
                self._last = episode
                made.append(episode)
        return made

    def sft_candidates(self, rows: Sequence[IndexedRow]) -> list[Episode]:
        """The episodes that pass; rows under the threshold are not even read."""
        assert self.options.reward_threshold is not None
        passing: list[IndexedRow] = []
        for row in rows:
            if row.reward is not None and row.reward < self.options.reward_threshold:
                self.ledger.count(self.recipe.key(row), "below_threshold", row.num_sampled)
            else:
                passing.append(row)
        return sft.sft_candidates(self.episodes(passing), self.options, self.ledger) if passing else []

    def sft_examples(self, rows: Sequence[IndexedRow]) -> list[Example]:
        """The training rows of a task, within the limit that balances environments."""
        candidates = self.sft_candidates(rows)
        if self.work.limits is not None:
            candidates = [
                episode
                for task_id, group in by_task(candidates).items()
                for episode in sft.keep_best(group, self.work.limits[task_id], "balanced", self.ledger)
            ]
        return sft.sft_examples(candidates, self.options, self.ledger)

    def paired(self, rows: Sequence[IndexedRow]) -> Paired:
        """The pairs within a task, and the rows that may find a partner in another one."""
        is_plain = self.options.strategy != "stratified" and len({row.prompt for row in rows}) == 1
        bucket = self._without_pairs(rows) if is_plain else None
        if bucket is not None:
            for row in rows:
                self.ledger.count(self.recipe.key(row), bucket, row.num_sampled)
            return Paired([], [])
        if is_plain and self.options.strategy == "same_prompt":
            return self._widest(rows)
        return dpo.pair_tasks(self.episodes(rows), self.options, self.ledger)

    def _without_pairs(self, rows: Sequence[IndexedRow]) -> str | None:
        """Why no two rows of one prompt can be a pair, seen from their rewards."""
        rewards = [row.reward for row in rows if row.reward is not None]
        if len(rewards) == 1:
            return "alone_in_task"
        if min(rewards) == max(rewards):
            return "no_variance"
        return "gap_too_small" if max(rewards) - min(rewards) < self.options.min_gap - TOLERANCE else None

    def _widest(self, rows: Sequence[IndexedRow]) -> Paired:
        """The best with the worst, which alone are read whole; only where these two are no pair, all are."""
        ranked = sorted(rows, key=lambda row: (-(row.reward or 0.0), row.num_sampled == 0))
        best, worst = ranked[0], next(row for row in ranked if row.reward == ranked[-1].reward)
        two = self.episodes([best, worst])
        others = [row for row in rows if row is not best and row is not worst]
        attempt = Ledger()
        paired = dpo.pair_tasks(two, self.options, attempt)
        if not paired.pairs:
            return dpo.pair_tasks([*two, *self.episodes(others)], self.options, self.ledger)
        self.ledger.add(attempt)
        assert best.reward is not None and worst.reward is not None  # noqa: PT018
        for row in others:
            assert row.reward is not None
            gap = max(best.reward - row.reward, row.reward - worst.reward)
            bucket = "not_paired" if gap >= self.options.min_gap - TOLERANCE else "gap_too_small"
            self.ledger.count(self.recipe.key(row), bucket, row.num_sampled)
        return paired

    def dpo_examples(self, rows: Sequence[IndexedRow]) -> list[Example]:
        """The preference rows of a task."""
        paired = self.paired(rows)
        for episode in paired.left:
            if episode.key not in self.work.awaited:
                self.ledger.count(episode.key, "no_partner", episode.num_sampled)
        return dpo.dpo_examples(paired.pairs, self.options, self.ledger)

    def pairs_across(self) -> list[Example]:
        """The preference rows of pairs across tasks."""
        pairs: list[Pair] = []
        for rows in self.work.pairs:
            episodes = [self._prepared(row) for row in rows]
            better, worse = episodes
            if better is None or worse is None:
                for episode in episodes:
                    if episode is not None:
                        self.ledger.count(episode.key, "no_partner", episode.num_sampled)
                continue
            pairs.append(Pair(better, worse, better.reward - worse.reward))
        self.ledger.use("pairs_across_tasks", len(pairs))
        return dpo.dpo_examples(pairs, self.options, self.ledger)

    def _prepared(self, row: IndexedRow) -> Episode | None:
        episode = self.made(row, read_episode)
        return None if episode is None else dpo.prepared(episode, self.options)

    def grpo_examples(self, rows: Sequence[IndexedRow]) -> list[Example]:
        """The task to play again; of its rollouts only the first is read whole, where they all ask the same."""
        if len({row.prompt for row in rows}) == 1:
            groups = self._alike(rows)
        else:
            groups = grpo.tasks_of([record for row in rows if (record := self.made(row, self.task_reader.read))])
        examples: list[Example] = []
        for group in groups:
            made = grpo.task_example(group, self.options, is_named=self.recipe.has_indices)
            grpo.count_task(made, self.ledger)
            if isinstance(made, str):
                self.ledger.count_rows(group.keys, made, sum(group.num_sampled))
            else:
                examples.append(made)
        return examples

    def _alike(self, rows: Sequence[IndexedRow]) -> list[grpo.Repeats]:
        """The rollouts of a task that all ask the same: of all but the first only what may be ground truth is read.

        Where the index tells that this is the same in all of them, not even that.
        """
        waiting = iter(rows)
        first = next((made for row in waiting if (made := self.made(row, self.task_reader.read))), None)
        if first is None:
            return []
        others = list(waiting)
        names = () if first.task is not None else first.candidates
        if self.recipe.alike.issuperset(names) and rows[0].alike and len({row.alike for row in rows}) == 1:
            names = ()
        keys = [self.recipe.key(row) for row in others]
        self.tokens_of.update(zip(keys, [row.num_sampled for row in others], strict=True))
        return [
            grpo.Repeats(
                first,
                [first.key, *keys],
                [first.reward, *[row.reward for row in others if row.reward is not None]],
                [first.num_sampled, *[row.num_sampled for row in others]],
                [grpo.fields_of_line(self.reader.line(row), names) for row in others] if names else [],
            )
        ]


@cache
def _evaluation(path: str | None, similarity: float) -> Evaluation | None:
    if path is None:
        return None
    from regimen.convert.near import read_evaluation  # numpy takes as long to load as all the rest

    return read_evaluation(Path(path), similarity)

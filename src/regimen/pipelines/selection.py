"""The second pass of a conversion over some tasks: the rows that selection needs are read whole and become examples.

In: a `Work`, tasks of the index by their rows, and the `Recipe` that all pieces share. Out: a `Piece`, the written
rows as bytes with their ledger.
Runs in any process: everything it needs travels with the work. A row that only the whole reading finds broken comes
back as a `BadRow`, counted as quarantined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from regimen.convert import dpo, grpo, sft
from regimen.convert.episodes import Episode, RowKey, by_task, read_episode
from regimen.convert.ledger import FAILED, Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.pairs import TOLERANCE, Pair, Paired
from regimen.convert.screen import Screen
from regimen.convert.sidecar import Example, TaskRecord
from regimen.convert.split import task_position
from regimen.errors import RolloutError
from regimen.rollouts.indexed import IndexedRow, RowReader
from regimen.rollouts.records import Source
from regimen.rollouts.report import BadRow, bad_row
from regimen.rollouts.writer import encode_row

if TYPE_CHECKING:
    from regimen.convert.near import Evaluation

SIDES: tuple[str, ...] = ("train", "val")
BUCKETS = {"train": "trained", "val": "validation"}
Made = TypeVar("Made", Episode, grpo.TaskRollout)
ENCODER = msgspec.json.Encoder()
GROUPS = msgspec.msgpack.Decoder(list[list[IndexedRow]])


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
    another task.
    """

    recipe: Recipe
    groups: list[list[IndexedRow]] = []
    limits: dict[str, int] | None = None
    copies: dict[str, int] | None = None
    awaited: frozenset[RowKey] = frozenset()
    pairs: list[tuple[IndexedRow, IndexedRow]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        groups = msgspec.msgpack.encode(self.groups)  # ten times as fast as pickling row by row
        return _work, (groups, self.recipe, self.limits, self.copies, self.awaited, self.pairs)


def _work(groups: bytes, recipe: Recipe, *decided: Any) -> Work:
    names = ("limits", "copies", "awaited", "pairs")
    return Work(recipe=recipe, groups=GROUPS.decode(groups), **dict(zip(names, decided, strict=True)))


class Written(msgspec.Struct):
    """Lines for one side: rows, their sidecar, and how many tasks they are of."""

    rows: bytes = b""
    records: bytes = b""
    num_rows: int = 0
    num_tasks: int = 0
    prompts: list[int] = []


class Piece(msgspec.Struct, kw_only=True):
    """What came of a piece of work. `nearest` maps the sides to their tasks nearest the border of the split."""

    ledger: Ledger
    screen: Screen
    train: Written
    val: Written
    bad: list[BadRow]
    tokenizers: Counter[str]
    templates: Counter[str]
    environments: Counter[str]
    num_rows: int = 0
    truth_nowhere: int = 0
    tasks_seen: int = 0
    tasks_failed: int = 0
    tasks_with_several_prompts: int = 0
    nearest: dict[str, tuple[float, str]] = {}


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

    def made(self, row: IndexedRow, make: Callable[[RowReader, IndexedRow], Made]) -> Made | None:
        """The record that `make` makes of a row; None where it is broken or has none, which is counted."""
        try:
            record = make(self.reader, row)
        except RolloutError as error:
            self._set_aside(row, error)
            return None
        self.prompt_of[record.key], self.tokens_of[record.key] = record.prompt_key, row.num_sampled
        if record.tokenizer:
            self.tokenizers[record.tokenizer] += 1
        if record.template:
            self.templates[record.template] += 1
        return record

    def episodes(self, rows: Sequence[IndexedRow]) -> list[Episode]:
        """The rows as episodes; broken ones are counted."""
        made: list[Episode] = []
        for row in rows:
            if episode := self.made(row, partial(read_episode, like=made[0] if made else None)):
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
            groups = grpo.tasks_of([record for row in rows if (record := self.made(row, grpo.read_task_rollout))])
        named = self.recipe.has_indices
        made = [grpo.task_example(group, self.options, self.ledger, is_named=named) for group in groups]
        return [example for example in made if example is not None]

    def _alike(self, rows: Sequence[IndexedRow]) -> list[grpo.Repeats]:
        """The rollouts of a task that all ask the same: of all but the first only what may be ground truth is read.

        Where the index tells that this is the same in all of them, not even that.
        """
        waiting = iter(rows)
        first = next((made for row in waiting if (made := self.made(row, grpo.read_task_rollout))), None)
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


EXAMPLES = {"sft": Stage.sft_examples, "dpo": Stage.dpo_examples, "grpo": Stage.grpo_examples}


def piece_of(work: Work) -> Piece:
    """Everything that becomes of the work's rows."""
    stage = Stage(work)
    piece = Piece(
        ledger=stage.ledger,
        screen=stage.screen,
        train=Written(),
        val=Written(),
        bad=stage.bad,
        tokenizers=stage.tokenizers,
        templates=stage.templates,
        environments=Counter(),
    )
    lines: dict[str, tuple[list[bytes], list[bytes]]] = {side: ([], []) for side in SIDES}
    with stage.reader:
        for group in work.groups:
            stage.reader.met_odd_rows = False  # how a row is written must not depend on the tasks before it
            rows = stage.scored(group)
            piece.num_rows += len(group)
            _count_task(piece, group, rows)
            _write(stage, piece, EXAMPLES[work.recipe.to](stage, rows) if rows else [], lines)
        if work.pairs:
            stage.reader.met_odd_rows = False
            _write(stage, piece, stage.pairs_across(), lines)
    for side, (rows_of, records_of) in lines.items():
        written: Written = getattr(piece, side)
        written.rows, written.records = b"".join(rows_of), b"".join(records_of)
    stage.ledger.forget_keys()
    stage.screen.rest()
    return piece


def _count_task(piece: Piece, group: Sequence[IndexedRow], rows: Sequence[IndexedRow]) -> None:
    scored = [row for row in group if row.reward is not None]
    piece.tasks_seen += bool(rows)
    piece.tasks_failed += not scored
    piece.tasks_with_several_prompts += len({row.prompt for row in rows}) > 1


def _write(
    stage: Stage, piece: Piece, examples: Sequence[Example], lines: dict[str, tuple[list[bytes], list[bytes]]]
) -> None:
    """Encode the examples of one task, or of pairs across tasks, and count their rows."""
    recipe, copies, is_odd = stage.recipe, stage.work.copies, stage.reader.met_odd_rows
    counted: set[RowKey] = set()
    tasks: set[str] = set()
    kept: dict[str, list[object]] = {side: [] for side in SIDES}
    for example in examples:
        side = recipe.side(example.task_id)
        bucket = _left_out(stage, example, side)
        keys = [key for key in example.keys if key not in counted] if counted else example.keys
        counted.update(keys)
        stage.ledger.count_rows(keys, bucket or BUCKETS[side], sum([stage.tokens_of[key] for key in keys]))
        if bucket is not None:
            continue
        times = copies[example.task_id] if copies is not None and side == "train" else 1
        kept[side].extend([example.row] * times)
        record = example.record
        lines[side][1].append(_lines([record], is_odd) * times)
        written: Written = getattr(piece, side)
        written.num_rows += times
        written.prompts.append(int(stage.prompt_of[example.keys[0]][:16], 16))
        if example.environment:
            piece.environments[example.environment] += times
        if example.task_id not in tasks:
            tasks.add(example.task_id)
            written.num_tasks += 1
            _keep_nearest(piece, side, example.task_id, recipe)
        if isinstance(record, TaskRecord) and record.truth == "nowhere":
            piece.truth_nowhere += 1
    for side, rows in kept.items():
        if rows:
            lines[side][0].append(_lines(rows, is_odd))


def _left_out(stage: Stage, example: Example, side: str) -> str | None:
    """Why an example is not written although selection took it."""
    if example.other_task_id is not None and stage.recipe.side(example.other_task_id) != side:
        stage.ledger.use("pairs_on_both_sides_dropped")
        return "no_partner"
    copies = stage.work.copies
    return "left_out_of_mix" if copies is not None and not copies[example.task_id] else None


def _lines(rows: Sequence[object], are_odd: bool) -> bytes:
    """Rows as lines, each as it would be written alone."""
    if are_odd:
        return b"".join(map(encode_row, rows))
    try:
        return ENCODER.encode_lines(rows)
    except (UnicodeEncodeError, OverflowError):
        return b"".join(map(_encoded, rows))


def _keep_nearest(piece: Piece, side: str, task_id: str, recipe: Recipe) -> None:
    """Remember the training task that would validate first, and the validation task that would train first."""
    place = (task_position(task_id, recipe.options.seed), task_id)
    known = piece.nearest.get(side)
    if known is None or (place < known if side == "train" else place > known):
        piece.nearest[side] = place


def _encoded(row: object) -> bytes:
    try:
        return msgspec.json.encode(row) + b"\n"
    except (UnicodeEncodeError, OverflowError):  # lone surrogates, numbers of more than 64 bits
        return encode_row(row)

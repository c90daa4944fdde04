"""A piece of a conversion's second pass, written: the examples of some tasks as lines, with their ledger.

In: a `Work`. Out: a `Piece`, which can come from another process. Refuses nothing of its own.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from regimen.convert.episodes import RowKey
from regimen.convert.ledger import Ledger
from regimen.convert.screen import Screen
from regimen.convert.sidecar import Example, TaskRecord
from regimen.convert.split import task_position
from regimen.pipelines.quick import ENCODER, EncodedTools, TaskLines, quick_way
from regimen.pipelines.selection import SIDES, Recipe, Stage, Work
from regimen.rollouts.indexed import IndexedRow
from regimen.rollouts.packed import PackedRows
from regimen.rollouts.report import BadRow
from regimen.rollouts.writer import encode_row

BUCKETS = {"train": "trained", "val": "validation"}
WORTH_A_FILE = 1 << 17  # bytes
Lines = dict[str, tuple[bytearray, bytearray]]  # of each side: its rows and their sidecar


class Written(msgspec.Struct):
    """Lines for one side: rows, their sidecar, and how many tasks they are of. A name is that of a file with them."""

    rows: bytearray | bytes | str = b""
    records: bytearray | bytes | str = b""
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
    lines: Lines = {side: (bytearray(), bytearray()) for side in SIDES}
    shared = _Shared()
    with stage.reader:
        if work.tasks is not None:
            _write_tasks(stage, piece, work.tasks, lines, shared)
        if work.pairs:
            stage.reader.met_odd_rows = False
            _write(stage, piece, stage.pairs_across(), lines, shared)
    for side, (rows_of, records_of) in lines.items():
        written: Written = getattr(piece, side)
        written.rows = _kept(rows_of, work.folder)
        written.records = _kept(records_of, work.folder)
    stage.ledger.forget_keys()
    stage.screen.rest()
    return piece


def _write_tasks(stage: Stage, piece: Piece, tasks: PackedRows, lines: Lines, shared: _Shared) -> None:
    """Write each task, the quick way where that is possible."""
    quick = quick_way(stage)
    for records in tasks.records_by_task():
        piece.num_rows += len(records)
        task = None if quick is None else quick(tasks, records)
        if task is not None:
            _take(stage, piece, task, lines)
            continue
        stage.reader.met_odd_rows = False  # how a row is written must not depend on the tasks before it
        group = list(map(tasks.row, records))
        rows = stage.scored(group)
        _count_task(piece, group, rows)
        _write(stage, piece, EXAMPLES[stage.recipe.to](stage, rows) if rows else [], lines, shared)


def _kept(lines: bytearray, folder: str | None) -> bytearray | str:
    """The lines, or the name of a file for them: to send many from process to process takes longer than a file."""
    if folder is None or len(lines) < WORTH_A_FILE:
        return lines
    number, name = tempfile.mkstemp(suffix=".piece", dir=folder)
    with open(number, "wb") as file:  # noqa: PTH123
        file.write(lines)
    return name


def _take(stage: Stage, piece: Piece, task: TaskLines, lines: Lines) -> None:
    """Put a task that came the quick way on its side."""
    piece.tasks_seen += 1
    if not task.num_lines:
        return
    side, number = stage.recipe.side(task.task_id), task.num_lines
    stage.ledger.count_many(BUCKETS[side], task.num_rows, task.num_tokens)
    rows_of, records_of = lines[side]
    rows_of += task.lines
    records_of += _lines(task.records, are_odd=False)
    written: Written = getattr(piece, side)
    written.num_rows += number
    written.num_tasks += 1
    written.prompts += [_prompt_number(task.prompt_key)] * number
    if task.environment:
        piece.environments[task.environment] += number
    _keep_nearest(piece, side, task.task_id, stage.recipe)
    piece.truth_nowhere += sum(
        [isinstance(record, TaskRecord) and record.truth == "nowhere" for record in task.records]
    )


def _prompt_number(key: str) -> int:
    return int(key[:16], 16)


def _count_task(piece: Piece, group: Sequence[IndexedRow], rows: Sequence[IndexedRow]) -> None:
    scored = [row for row in group if row.reward is not None]
    piece.tasks_seen += bool(rows)
    piece.tasks_failed += not scored
    piece.tasks_with_several_prompts += len({row.prompt for row in rows}) > 1


def _write(
    stage: Stage,
    piece: Piece,
    examples: Sequence[Example],
    lines: Lines,
    shared: _Shared,
) -> None:
    """Encode the examples of one task, or of pairs across tasks, and count their rows."""
    recipe, copies, is_odd = stage.recipe, stage.work.copies, stage.reader.met_odd_rows
    counted: set[RowKey] = set()
    tasks: set[str] = set()
    kept: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for example in examples:
        side = recipe.side(example.task_id)
        bucket = _left_out(stage, example, side)
        keys = [key for key in example.keys if key not in counted] if counted else example.keys
        counted.update(keys)
        stage.ledger.count_rows(keys, bucket or BUCKETS[side], sum(map(stage.tokens_of.__getitem__, keys)))
        if bucket is not None:
            continue
        times = copies[example.task_id] if copies is not None and side == "train" else 1
        kept[side].extend([example.row] * times)
        record = example.record
        lines[side][1].extend(_lines([record], is_odd) * times)
        written: Written = getattr(piece, side)
        written.num_rows += times
        written.prompts.append(_prompt_number(stage.prompt_of[example.keys[0]]))
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
            lines[side][0].extend(_lines(rows if is_odd else shared.encoded(rows), is_odd))


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


class _Shared:
    """Encodes once what rows have in common: the messages that the rows of a task begin with, and tools."""

    def __init__(self) -> None:
        self._tools = EncodedTools()

    def encoded(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a task with what they share encoded already; as they are where that cannot be."""
        try:
            conversations = [row["messages"] for row in rows] if len(rows) > 1 and "messages" in rows[0] else []
            begin = [msgspec.Raw(ENCODER.encode(message)) for message in _common(conversations)]
            made: list[dict[str, Any]] = []
            for row in rows:
                begun = {"messages": [*begin, *row["messages"][len(begin) :]]} if begin else {}
                common = {"tools": self._tools.of(row["tools"])} if "tools" in row else {}
                made.append({**row, **begun, **common})
        except (UnicodeEncodeError, OverflowError):
            return rows
        return made


def _common(lists: list[Any]) -> Iterator[object]:
    """The objects that all lists begin with."""
    for same in zip(*lists, strict=False):
        if any(value is not same[0] for value in same):
            return
        yield same[0]


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

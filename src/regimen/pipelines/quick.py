"""The quick way of the second pass: whole tasks of the usual kind, without a record for each of their rows.

In: a task, as its records stand in the index. Out: `TaskLines`, exactly what the general way would write and count; or
None for a task that must go that way, of which nothing was counted then. Usual is a task whose rows stand in one file,
were all scored, ask the same and have the usual shape, under options that choose by reward alone.
Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from regimen.convert import grpo
from regimen.convert.asked import Asked, asked_of
from regimen.convert.episodes import stamped, text_keys
from regimen.convert.notes import note_told
from regimen.convert.sidecar import EpisodeRecord, Record
from regimen.errors import RolloutError
from regimen.pipelines.selection import Stage
from regimen.rollouts.fields import ALIKE, FILE, NUM_SAMPLED, PROMPT, REWARD, RecordTuple
from regimen.rollouts.indexed import IndexedRow
from regimen.rollouts.packed import PackedRows
from regimen.rollouts.records import Source
from regimen.rollouts.usual import Told

ENCODER = msgspec.json.Encoder()


class EncodedTools:
    """Tools as they are written, encoded once for rows that share them, one after the other."""

    def __init__(self) -> None:
        self._known: tuple[object, msgspec.Raw] = None, msgspec.Raw(b"null")

    def of(self, tools: object) -> msgspec.Raw:
        """The tools, encoded; raises what the encoder raises."""
        if tools is not self._known[0]:
            self._known = tools, msgspec.Raw(ENCODER.encode(tools))
        return self._known[1]


class TaskLines(msgspec.Struct):
    """What a task became: `num_lines` lines and their sidecar, and the rows of the input they were made of.

    Rows that were left out are counted already. `prompt_key` is equal for equal prompts.
    """

    task_id: str
    environment: str | None
    lines: bytes | bytearray
    records: Sequence[Record]
    num_lines: int
    num_rows: int
    num_tokens: int
    prompt_key: str


Way = Callable[[PackedRows, Sequence[RecordTuple]], TaskLines | None]


def quick_way(stage: Stage) -> Way | None:
    """The quick way of a piece; None where its options ask for what this way does not know."""
    work, options, to = stage.work, stage.options, stage.recipe.to
    is_decided = work.limits is not None or work.copies is not None or bool(work.awaited)
    if is_decided or not stage.screen.is_idle or to == "dpo":
        return None
    if to == "grpo":
        return _GrpoWay(stage)
    is_plain = options.format == "openai" and options.spelling == "openai" and options.reasoning == "reasoning_content"
    chooses = options.require_tool_use or options.min_turns > 1 or options.max_per_task is not None
    return _SftWay(stage) if is_plain and not chooses else None


class _SftWay:
    """Rows that reach the threshold. Tasks where two of them say the same, or one ends with a tool, are not usual."""

    def __init__(self, stage: Stage) -> None:
        assert stage.options.reward_threshold is not None
        self._stage, self._threshold = stage, stage.options.reward_threshold
        self._asked: Asked | None = None
        self._before = self._after = b""

    def __call__(self, packed: PackedRows, records: Sequence[RecordTuple]) -> TaskLines | None:
        passing = [record for record in records if record[REWARD] >= self._threshold]
        if not passing or not _ask_the_same(records) or any(record[NUM_SAMPLED] for record in passing):
            return None
        rows = list(map(packed.row, passing))
        found = self._told(rows)
        if found is None:
            return None
        told, asked = found
        if len(set(text_keys([one.completion for one in told]))) < len(told):
            return None
        try:
            lines = self._lines(told, asked)
        except (UnicodeEncodeError, OverflowError):
            return None
        path = self._stage.recipe.files[rows[0].file]
        made = [_record_of(row, one, asked, path) for row, one in zip(rows, told, strict=True)]
        below = [record[NUM_SAMPLED] for record in records if record[REWARD] < self._threshold]
        self._stage.ledger.count_many("below_threshold", len(below), sum(below))
        note_told(told, asked, self._stage.ledger)
        for record in made:
            self._stage.count_stamp(record.tokenizer, record.template)
        return TaskLines(
            task_id=rows[0].task_id,
            environment=rows[0].environment,
            lines=lines,
            num_lines=len(rows),
            records=made,
            num_rows=len(rows),
            num_tokens=0,
            prompt_key=asked.key,
        )

    def _told(self, rows: Sequence[IndexedRow]) -> tuple[list[Told], Asked] | None:
        """What the rows tell and were asked; None where one has another shape."""
        found: list[Told] = []
        params: dict[str, Any] = {}
        for row in rows:
            one = self._stage.reader.told(row)
            if one is None:
                return None
            told, params, _ = one
            if not told.completion or told.completion[-1]["role"] != "assistant":
                return None
            found.append(told)
        try:
            return found, asked_of(params, self._asked)
        except RolloutError:
            return None

    def _lines(self, told: Sequence[Told], asked: Asked) -> bytearray:
        """The rows; what they share, at their beginning and their end, is encoded once."""
        if asked is not self._asked:
            prompt, tools = ENCODER.encode(asked.prompt), ENCODER.encode(asked.tools)
            self._before = b'{"messages":' + (prompt[:-1] if asked.prompt else b"")
            self._after = (b',"tools":' + tools if asked.tools else b"") + b"}\n"
            self._asked = asked
        lines = bytearray()
        for one in told:
            lines += self._before
            joint = len(lines)
            ENCODER.encode_into(one.completion, lines, -1)
            if asked.prompt:
                lines[joint] = ord(",")  # in place of the bracket that begins the completion
            lines += self._after
        return lines


def _record_of(row: IndexedRow, told: Told, asked: Asked, path: str) -> EpisodeRecord:
    tokenizer, template = stamped(told.stamp)
    assert row.reward is not None
    return EpisodeRecord(
        source=Source(path, row.line),
        task_id=row.task_id,
        task_index=row.task_index,
        rollout_index=row.rollout_index,
        reward=row.reward,
        tokenizer=tokenizer,
        template=template,
        num_prompt_messages=len(asked.prompt),
        sequences=[],
    )


class _GrpoWay:
    """Tasks whose first row tells what all of them say of the task."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._tools = stage, EncodedTools()

    def __call__(self, packed: PackedRows, records: Sequence[RecordTuple]) -> TaskLines | None:
        stage, recipe, alike = self._stage, self._stage.recipe, records[0][ALIKE]
        if not _ask_the_same(records) or not alike or any(record[ALIKE] != alike for record in records):
            return None
        stage.reader.met_odd_rows = False
        try:
            first = stage.task_reader.read(stage.reader, packed.row(records[0]))
        except RolloutError:
            return None
        if stage.reader.met_odd_rows or not (first.task is not None or recipe.alike.issuperset(first.candidates)):
            return None
        sampled = [record[NUM_SAMPLED] for record in records]
        repeats = grpo.Repeats(first, [], [record[REWARD] for record in records], sampled, [])
        made = grpo.task_example(repeats, stage.options, is_named=recipe.has_indices)
        task = TaskLines(first.task_id, first.environment, b"", [], 0, 0, 0, first.prompt_key)
        if isinstance(made, str):
            stage.ledger.count_many(made, len(records), sum(sampled))
        else:
            try:
                task.lines = ENCODER.encode(self._with_tools_encoded(made.row)) + b"\n"
            except (UnicodeEncodeError, OverflowError):
                return None
            task.records, task.num_lines, task.num_rows, task.num_tokens = [made.record], 1, len(records), sum(sampled)
        grpo.count_task(made, stage.ledger)
        stage.count_stamp(first.tokenizer, first.template)
        return task

    def _with_tools_encoded(self, row: dict[str, Any]) -> dict[str, Any]:
        asked = row.get("responses_create_params")
        if not isinstance(asked, dict) or "tools" not in asked:
            return row
        asked = cast("dict[str, Any]", asked)
        return {**row, "responses_create_params": {**asked, "tools": self._tools.of(asked["tools"])}}


def _ask_the_same(records: Sequence[RecordTuple]) -> bool:
    """Whether all rows were scored, stand in one file and ask the same."""
    file, prompt = records[0][FILE], records[0][PROMPT]
    for record in records:
        if record[FILE] != file or record[PROMPT] != prompt or record[REWARD] != record[REWARD]:
            return False
    return True

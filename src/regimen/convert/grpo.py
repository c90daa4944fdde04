"""Task rows to play again: each task once, with how often it was solved.

In: scored rollouts, as `TaskRollout`s. Out: NeMo Gym task rows (`gym`) or `{input, output}` strings (`response`).
The verifier's fields come from the joined task row; where there is none, from the rollout row, leaving out what the
verifier measured. Refuses nothing by itself: what is left out is counted by name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, TypedDict, cast

import msgspec
from xxhash import xxh3_128_hexdigest

from regimen.convert.episodes import RowKey, fingerprints
from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.sidecar import Example, TaskRecord
from regimen.errors import ConvertError, RolloutError
from regimen.rollouts.indexed import IndexedRow, RowReader
from regimen.rollouts.lines import decode_row
from regimen.rollouts.messages import input_messages
from regimen.rollouts.records import SAMPLING_SETTINGS, Source, canonical_bytes, info_of, is_metric

# Names under which people keep the right answer, in the order they are believed.
ANSWER_FIELDS = (
    "expected_answer",
    "ground_truth",
    "answer",
    "expected_output",
    "reference_answer",
    "target",
    "solution",
    "label",
)
# Fields of a row that are no ground truth: stamps, and names of what a verifier found out.
STAMPS = frozenset({"responses_create_params", "response", "output", "reward", "regimen", "reward_components"})
MEASURED = frozenset(
    {"mask_sample", "failure_kind", "failure_reason", "task_source", "agent_ref", "score", "accuracy", "judge"}
)
MEASURED_STARTS = ("_ng_", "extracted_", "parsed_", "predicted_", "judge_", "model_", "is_correct")
# What a task row carries besides its ground truth.
NOT_TRUTH = frozenset({"responses_create_params", "agent_ref", "task_source", "id", "uuid", "task_name", "pass_rate"})
TOLERANCE = 1e-9


class TaskRollout(msgspec.Struct, frozen=True, kw_only=True):
    """What GRPO keeps of a scored rollout: its task, not its text.

    `candidates` names the fields that are ground truth if every repeat has them alike.
    """

    source: Source
    task_id: str
    task_index: int | None
    environment: str | None
    reward: float
    params: dict[str, Any]
    task: dict[str, Any] | None
    fields: dict[str, Any]
    candidates: tuple[str, ...]
    prompt_key: str
    num_sampled: int
    tokenizer: str | None
    template: str | None

    @property
    def key(self) -> RowKey:
        """The row's identity in the ledger."""
        return (self.source.path, self.source.line)

    @property
    def written(self) -> dict[str, Any]:
        """What task rows are made of."""
        return {"params": self.params, "task": self.task} | {name: self.fields[name] for name in self.candidates}


class Repeats(msgspec.Struct, frozen=True):
    """All scored rollouts of a task that asked the same: the first one, and of each its key, reward and sampled tokens.

    `others` holds the fields of those that may say something else about the task than the first.
    """

    first: TaskRollout
    keys: list[RowKey]
    rewards: list[float]
    num_sampled: list[int]
    others: list[dict[str, Any]]


class TaskReader:
    """Reads rows as `TaskRollout`s; what rows with the same tools, one after the other, share is made once."""

    def __init__(self) -> None:
        self._tools: tuple[object, bytes] = None, b"null"

    def read(self, reader: RowReader, row: IndexedRow) -> TaskRollout:
        """A scored row of the index, of which is kept what its task needs."""
        rollout = reader.asked(row)
        assert rollout.reward is not None
        tokenizer, template = fingerprints(rollout)
        candidates = candidates_of(rollout.row)
        if reader.met_odd_rows:  # what a verifier measured may be no number
            candidates = tuple([name for name in candidates if _says_truth(name) or _is_finite(rollout.row[name])])
        return TaskRollout(
            source=rollout.source,
            task_id=rollout.task_id,
            task_index=rollout.task_index,
            environment=rollout.environment,
            reward=rollout.reward,
            params=rollout.params,
            task=rollout.task,
            fields=_fields_of(rollout.row),
            candidates=candidates,
            prompt_key=self._prompt_key(rollout.params),
            num_sampled=row.num_sampled,
            tokenizer=tokenizer,
            template=template,
        )

    def _prompt_key(self, params: dict[str, Any]) -> str:
        tools = params.get("tools")
        if tools is not self._tools[0]:
            self._tools = tools, canonical_bytes(tools)
        asked = [canonical_bytes(params.get(name)) for name in ("input", "instructions")]
        return xxh3_128_hexdigest(b"\n".join((*asked, self._tools[1])))


def candidates_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a row that are ground truth if every repeat has them alike."""
    names = [name for name, value in row.items() if value is not None and _may_be_truth(name, value)]
    return tuple([name for name in names if name != "info" or not info_of(row)])


def fields_of_line(line: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    """The named fields of a row, read without the rest of its line."""
    try:
        return _decoder(names)(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # numbers that only the slower parser knows
        row = decode_row(line)
        return {name: row[name] for name in names if name in row}


@cache
def _decoder(names: tuple[str, ...]) -> Callable[[bytes], dict[str, Any]]:
    make_type = cast("Any", TypedDict)
    return msgspec.json.Decoder(make_type("Fields", dict.fromkeys(names, Any), total=False)).decode


def _fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in STAMPS}


def task_example(repeats: Repeats, options: ConvertOptions, *, is_named: bool) -> Example | str:
    """The row of one task, or the bucket of its rollouts where it has none.

    `options` are resolved (no auto, no None threshold). A named gym row carries the index of its task.
    """
    assert options.reward_threshold is not None
    first, rate = repeats.first, pass_rate(repeats.rewards, options.reward_threshold)
    fields, truth = task_fields(repeats)
    row = _response_row(first, fields) if options.format == "response" else _gym_row(first, fields)
    bucket = row if isinstance(row, str) else _refused_by(rate, options)
    if bucket is not None or isinstance(row, str):
        return str(bucket)
    if options.with_pass_rate:
        row["pass_rate"] = rate
    if is_named and options.format != "response":  # strings have no place for it
        row["_ng_task_index"] = first.task_index
    return _example(repeats, row, rate, truth)


def count_task(made: Example | str, ledger: Ledger) -> None:
    """Count what `task_example` made as a task; its rollouts are rows, counted apart."""
    if isinstance(made, str):
        ledger.use(f"tasks_{made}")
        return
    ledger.use("tasks")
    record = made.record
    if isinstance(record, TaskRecord):
        ledger.note(f"tasks_truth_from_{record.truth}")


def tasks_of(rollouts: Sequence[TaskRollout]) -> list[Repeats]:
    """Rollouts by task and prompt, in task order."""
    groups: defaultdict[tuple[str, str], list[TaskRollout]] = defaultdict(list)
    ordered = sorted(
        rollouts, key=lambda r: (r.environment or "", r.task_index is None, r.task_index or 0, r.task_id, *r.key)
    )
    for rollout in ordered:
        groups[rollout.task_id, rollout.prompt_key].append(rollout)
    return [_repeats(group) for group in groups.values()]


def _repeats(group: Sequence[TaskRollout]) -> Repeats:
    joined = next((rollout.task for rollout in group if rollout.task is not None), None)
    return Repeats(
        msgspec.structs.replace(group[0], task=joined),
        [rollout.key for rollout in group],
        [rollout.reward for rollout in group],
        [rollout.num_sampled for rollout in group],
        [rollout.fields for rollout in group[1:]],
    )


def pass_rate(rewards: Sequence[float], threshold: float) -> float:
    """The share of rollouts whose reward reaches `threshold`."""
    return sum(reward >= threshold for reward in rewards) / len(rewards)


def _refused_by(rate: float, options: ConvertOptions) -> str | None:
    if rate < options.min_pass_rate - TOLERANCE:
        return "pass_rate_too_low"
    return "pass_rate_too_high" if rate > options.max_pass_rate + TOLERANCE else None


def task_fields(repeats: Repeats) -> tuple[dict[str, Any], str]:
    """The verifier's fields of a task and where they come from: `task_row`, `rollout_row` or `nowhere`."""
    first = repeats.first
    if first.task is not None:
        fields = {
            name: value
            for name, value in first.task.items()
            if not name.startswith("_ng_") and name != "responses_create_params"
        }
    else:  # what speaks about the task, not about one rollout, is the same in every repeat
        fields = {name: first.fields[name] for name in first.candidates}
        for other in repeats.others:
            fields = {name: value for name, value in fields.items() if other.get(name) == value}
    has_truth = any(name not in NOT_TRUTH for name in fields) or bool(_metadata_answer(first.params))
    place = "rollout_row" if first.task is None else "task_row"
    return fields, place if has_truth else "nowhere"


def _may_be_truth(name: str, value: object) -> bool:
    says = _says_truth(name)
    return not is_metric(name, value) if says is None else says


def _is_finite(value: Any) -> bool:
    """Whether no number in a value is infinite or NaN; nesting beyond the parser's has not been read."""
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, (dict, list)):
        inner = cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value)
        return all(map(_is_finite, inner))
    return True


@lru_cache(maxsize=1024)
def _says_truth(name: str) -> bool | None:
    """What a field's name says of it; None where its value decides."""
    if name in ANSWER_FIELDS or name.startswith("expected_"):
        return True
    return False if name in STAMPS or name in MEASURED or name.startswith(MEASURED_STARTS) else None


def _metadata_answer(params: dict[str, Any]) -> Any:
    """An answer kept in the request: `ground_truth` or `answer`, in the params or their metadata."""
    metadata = params.get("metadata")
    places = [params, cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}]
    found = [place[name] for place in places for name in ANSWER_FIELDS if place.get(name) is not None]
    return found[0] if found else None


def _gym_row(rollout: TaskRollout, fields: dict[str, Any]) -> dict[str, object]:
    asked = (rollout.task or {}).get("responses_create_params")
    if not isinstance(asked, dict):
        asked = {
            name: value for name, value in rollout.params.items() if value is not None and name not in SAMPLING_SETTINGS
        }
    row: dict[str, object] = {"responses_create_params": asked, **fields}
    agent = rollout.fields.get("agent_ref")
    if agent is not None and row.get("agent_ref") is None:
        row["agent_ref"] = agent
    if rollout.environment is not None:
        row.setdefault("task_name", rollout.environment)
    return row


def _response_row(rollout: TaskRollout, fields: dict[str, Any]) -> dict[str, object] | str:
    """`{input, output}` with a string answer, or the bucket of a task that strings cannot say."""
    try:
        prompt = input_messages(rollout.params)
    except RolloutError:
        return "not_simple"
    if [message["role"] for message in prompt] != ["user"] or rollout.params.get("tools"):
        return "not_simple"
    if not isinstance(prompt[0]["content"], str):
        return "not_simple"
    answer = next((fields[name] for name in ANSWER_FIELDS if fields.get(name) is not None), None)
    answer = _metadata_answer(rollout.params) if answer is None else answer
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        return "no_answer"
    # Scorers compare text: a JSON number as the answer scores 0 for right answers.
    return {"input": prompt[0]["content"], "output": str(answer)}


def _example(repeats: Repeats, row: dict[str, object], rate: float, truth: str) -> Example:
    first = repeats.first
    make_record = partial(
        TaskRecord,
        task_id=first.task_id,
        task_index=first.task_index,
        pass_rate=rate,
        mean_reward=sum(repeats.rewards) / len(repeats.rewards),
        num_rollouts=len(repeats.rewards),
        truth=truth,
        source=first.source,
    )
    return Example(
        row=row,
        make_record=make_record,
        task_id=first.task_id,
        keys=repeats.keys,
        environment=first.environment,
    )


def nothing_to_play(groups: Sequence[Sequence[float]], options: ConvertOptions, ledger: Ledger) -> ConvertError:
    """Why no task is left, from the rewards by task and prompt, and what the pass rates looked like."""
    if not groups:
        return ConvertError("no scored rollout is left to play", fix="look at the failures, and at the filters")
    assert options.reward_threshold is not None
    rates = sorted(pass_rate(group, options.reward_threshold) for group in groups)
    rewards = [reward for group in groups for reward in group]
    seen = (
        f"pass rates of {len(rates)} tasks from {rates[0]:.3g} to {rates[-1]:.3g} at the reward threshold "
        f"{options.reward_threshold:g}, rewards from {min(rewards):g} to {max(rewards):g}"
    )
    refused = {name: ledger.rows_in(name) for name in ("not_simple", "no_answer")}
    if any(refused.values()):
        listed = ", ".join(f"{name} {count} rows" for name, count in refused.items() if count)
        return ConvertError(
            f"no task can be written as strings ({listed}); {seen}", fix="--format gym keeps whole tasks"
        )
    return ConvertError(
        f"no task has a pass rate from {options.min_pass_rate:g} to {options.max_pass_rate:g}: {seen}",
        fix=f"--min-pass-rate {rates[0]:.3g} --max-pass-rate {rates[-1]:.3g} would keep all",
    )

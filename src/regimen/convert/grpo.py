"""Task rows to play again: each task once, with how often it was solved.

In: scored rollouts, as `TaskRollout`s. Out: NeMo Gym task rows (`gym`) or `{input, output}` strings (`response`).
The verifier's fields come from the joined task row; where there is none, from the rollout row, leaving out what the
verifier measured. Refuses nothing by itself: what is left out is counted by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypedDict, cast

import msgspec

from regimen.convert.episodes import RowKey, digest, fingerprints, num_sampled_ids
from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.sidecar import Example, TaskRecord
from regimen.errors import ConvertError, RolloutError
from regimen.rollouts.indexed import IndexedRow, RowReader
from regimen.rollouts.lines import decode_row
from regimen.rollouts.messages import input_messages
from regimen.rollouts.records import SAMPLING_SETTINGS, Rollout, Source

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
    """What GRPO keeps of a scored rollout: its task, not its text."""

    source: Source
    task_id: str
    task_index: int | None
    environment: str | None
    reward: float
    params: dict[str, Any]
    task: dict[str, Any] | None
    fields: dict[str, Any]
    measured: frozenset[str]
    prompt_key: str
    num_sampled: int
    tokenizer: str | None
    template: str | None

    @property
    def key(self) -> RowKey:
        """The row's identity in the ledger."""
        return (self.source.path, self.source.line)


def task_rollout_of(rollout: Rollout) -> TaskRollout:
    """Keep of a scored rollout what its task needs."""
    assert rollout.reward is not None
    tokenizer, template = fingerprints(rollout)
    asked = {name: rollout.params.get(name) for name in ("instructions", "input", "tools")}
    return TaskRollout(
        source=rollout.source,
        task_id=rollout.task_id,
        task_index=rollout.task_index,
        environment=rollout.environment,
        reward=rollout.reward,
        params=rollout.params,
        task=rollout.task,
        fields=_fields_of(rollout.row),
        measured=frozenset(rollout.metrics),
        prompt_key=digest(asked),
        num_sampled=num_sampled_ids(rollout),
        tokenizer=tokenizer,
        template=template,
    )


def read_task_rollout(reader: RowReader, row: IndexedRow) -> TaskRollout:
    """A scored row of the index, of which is kept what its task needs."""
    return task_rollout_of(reader.rollout(row))


def candidates_of(rollout: TaskRollout) -> tuple[str, ...]:
    """The fields of a row that are ground truth if every repeat has them alike."""
    return tuple(name for name, value in rollout.fields.items() if value is not None and _may_be_truth(name, rollout))


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


def _fields_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in STAMPS}


def build_grpo(rollouts: Sequence[TaskRollout], options: ConvertOptions, ledger: Ledger) -> list[Example]:
    """One row per task that passes the filters; `options` are resolved (no auto, no None threshold)."""
    made = [task_example(group, options, ledger) for group in tasks_of(rollouts)]
    examples = [example for example in made if example is not None]
    indices = [cast("TaskRecord", example.record).task_index for example in examples]
    return [with_task_index(example) for example in examples] if are_unique(indices) else examples


def task_example(group: Sequence[TaskRollout], options: ConvertOptions, ledger: Ledger) -> Example | None:
    """The row of one task, from all its rollouts with the same prompt; or None, and the rollouts counted."""
    assert options.reward_threshold is not None
    rate = pass_rate([rollout.reward for rollout in group], options.reward_threshold)
    fields, truth = task_fields(group)
    row = _response_row(group[0], fields) if options.format == "response" else _gym_row(group[0], fields)
    bucket = row if isinstance(row, str) else _refused_by(rate, options)
    if bucket is not None or isinstance(row, str):
        for rollout in group:
            ledger.count(rollout.key, str(bucket), rollout.num_sampled)
        ledger.use(f"tasks_{bucket}")
        return None
    if options.with_pass_rate:
        row["pass_rate"] = rate
    ledger.use("tasks")
    ledger.note(f"tasks_truth_from_{truth}")
    return _example(group, row, rate, truth)


def tasks_of(rollouts: Sequence[TaskRollout]) -> list[list[TaskRollout]]:
    """Rollouts by task and prompt, in task order."""
    groups: defaultdict[tuple[str, str], list[TaskRollout]] = defaultdict(list)
    ordered = sorted(
        rollouts, key=lambda r: (r.environment or "", r.task_index is None, r.task_index or 0, r.task_id, *r.key)
    )
    for rollout in ordered:
        groups[rollout.task_id, rollout.prompt_key].append(rollout)
    return list(groups.values())


def pass_rate(rewards: Sequence[float], threshold: float) -> float:
    """The share of rollouts whose reward reaches `threshold`."""
    return sum(reward >= threshold for reward in rewards) / len(rewards)


def _refused_by(rate: float, options: ConvertOptions) -> str | None:
    if rate < options.min_pass_rate - TOLERANCE:
        return "pass_rate_too_low"
    return "pass_rate_too_high" if rate > options.max_pass_rate + TOLERANCE else None


def task_fields(group: Sequence[TaskRollout]) -> tuple[dict[str, Any], str]:
    """The verifier's fields of a task and where they come from: `task_row`, `rollout_row` or `nowhere`."""
    joined = next((rollout.task for rollout in group if rollout.task is not None), None)
    if joined is not None:
        fields = {
            name: value
            for name, value in joined.items()
            if not name.startswith("_ng_") and name != "responses_create_params"
        }
        has_truth = any(name not in NOT_TRUTH for name in fields) or bool(_metadata_answer(group[0].params))
        return fields, "task_row" if has_truth else "nowhere"
    fields = {
        name: value for name, value in group[0].fields.items() if value is not None and _is_truth(name, value, group)
    }
    has_truth = any(name not in NOT_TRUTH for name in fields) or bool(_metadata_answer(group[0].params))
    return fields, "rollout_row" if has_truth else "nowhere"


def _is_truth(name: str, value: Any, group: Sequence[TaskRollout]) -> bool:
    """Whether a field of rollout rows speaks about the task: the same in every repeat and measured by nobody."""
    return _may_be_truth(name, group[0]) and all(rollout.fields.get(name) == value for rollout in group)


def _may_be_truth(name: str, rollout: TaskRollout) -> bool:
    if name in ANSWER_FIELDS or name.startswith("expected_"):
        return True
    return name not in MEASURED and name not in rollout.measured and not name.startswith(MEASURED_STARTS)


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


def _example(group: Sequence[TaskRollout], row: dict[str, object], rate: float, truth: str) -> Example:
    first = group[0]
    make_record = partial(
        TaskRecord,
        task_id=first.task_id,
        task_index=first.task_index,
        pass_rate=rate,
        mean_reward=sum(rollout.reward for rollout in group) / len(group),
        num_rollouts=len(group),
        truth=truth,
        source=first.source,
    )
    return Example(
        row=row,
        make_record=make_record,
        task_id=first.task_id,
        keys=[rollout.key for rollout in group],
        environment=first.environment,
    )


def are_unique(indices: Sequence[int | None]) -> bool:
    """Whether every task has an index of its own, so that new rollouts can name it."""
    return None not in indices and len(set(indices)) == len(indices)


def with_task_index(example: Example) -> Example:
    """A gym row with the index of its task; other rows have no place for it."""
    if "responses_create_params" not in example.row:
        return example
    index = cast("TaskRecord", example.record).task_index
    return msgspec.structs.replace(example, row={**example.row, "_ng_task_index": index})


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

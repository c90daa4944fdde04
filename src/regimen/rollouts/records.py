"""One rollout: a finished episode as a frozen record, checked when it is made.

In: a row of a rollouts file (NeMo Gym's shape, the flat shape of older guides, or our own with its stamp).
Out: `Rollout`. The row itself is kept whole in `row`, so unknown fields come out again.
Refuses, with `RolloutError`: a scored row without a usable reward, output or prompt, and broken token fields.
A row that records a failure is not refused: it is an unscored outcome, and its reward is None whatever it says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from regimen.errors import RolloutError
from regimen.rollouts.messages import kind_of
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.turns import TOKEN_FIELDS, turns_of

PROMPT_IDS, SAMPLED_IDS, LOGPROBS = TOKEN_FIELDS
NUMBERS = frozenset({bool, int, float})

# A larger one is an error of the verifier, and its square would not fit a float.
LARGEST_REWARD = 1e100

# In the `info` of an episode that is played by steps: false where it was never judged, and its reward says nothing.
JUDGED = "judged"

# Settings of the request that do not change which task it is.
SAMPLING_SETTINGS = frozenset(
    {
        "background", "include", "logprobs", "max_completion_tokens", "max_output_tokens", "max_tokens", "min_p",
        "model", "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "service_tier", "stop",
        "store", "stream", "stream_options", "temperature", "top_k", "top_logprobs", "top_p", "truncation", "user",
    }
)  # fmt: skip

# Top-level numbers that are stamps or answers, not measurements.
NOT_METRICS = frozenset(
    {
        "reward", "mask_sample", "failure_kind", "failure_reason", "id", "uuid", "index", "idx", "seed", "task_id",
        "task_index", "rollout_index", "expected_answer", "extracted_answer", "answer", "ground_truth",
    }
)  # fmt: skip


class Source(msgspec.Struct, frozen=True):
    """Where a row was read: the file and its line, counted from 1."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class _TokenFields(msgspec.Struct):
    """The token fields of an item, as msgspec checks them: many times faster than Python."""

    prompt_token_ids: list[int]
    generation_token_ids: list[int]
    generation_log_probs: list[float]


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One finished episode.

    `reward` is None exactly when the outcome is not scored. `task_id` is the task's identity among the rollouts
    read together. `metrics` holds the verifier's other numbers (true and false as 1 and 0), `components` the named
    parts of the reward, `task` the task row that holds the ground truth, where it was found.
    """

    source: Source
    row: dict[str, Any]
    params: dict[str, Any]
    output: list[dict[str, Any]]
    reward: float | None
    outcome: Outcome
    reason: str | None
    task_index: int | None
    rollout_index: int | None
    task_id: str
    environment: str | None
    metrics: dict[str, float]
    components: dict[str, float]
    task: dict[str, Any] | None


def rollout_from_row(row: Any, source: Source, task: dict[str, Any] | None = None) -> Rollout:
    """Check a row and make it a `Rollout`; raises `RolloutError` (without the source: the caller knows it)."""
    if not isinstance(row, dict):
        raise RolloutError(f"the row is {kind_of(row)}", expected="an object")
    row = cast("dict[str, Any]", row)
    outcome, reason = outcome_of(row)
    environment = environment_of(row)
    task_index = index_of(row, "_ng_task_index")
    scored = outcome.is_scored
    reward = reward_of(row) if scored else None
    params = _params(row, task, required=scored)
    output = _output(row, required=scored)
    if scored:
        check_tokens(output)
    return Rollout(
        source=source,
        row=row,
        params=params,
        output=output,
        reward=reward,
        outcome=outcome,
        reason=reason,
        task_index=task_index,
        rollout_index=index_of(row, "_ng_rollout_index"),
        task_id=task_id_of(environment, task_index, params),
        environment=environment,
        metrics=metrics_of(row),
        components=_components(row),
        task=task,
    )


def outcome_of(row: dict[str, Any]) -> tuple[Outcome, str | None]:
    """How the episode ended, and why: from our stamp, or NeMo Gym's failure fields, or the response's status."""
    stamp = row.get("regimen")
    if isinstance(stamp, dict) and "outcome" in stamp:
        stamp = cast("dict[str, Any]", stamp)
        try:
            return Outcome(stamp["outcome"]), _text(stamp.get("reason"))
        except ValueError:
            known = ", ".join(Outcome)
            raise RolloutError(f"regimen.outcome is {stamp['outcome']!r}", expected=f"one of {known}") from None
    if row.get("mask_sample") is True or row.get("failure_kind") or row.get("_ng_failure_class"):
        kind = _text(row.get("failure_kind")) or _text(row.get("_ng_failure_class")) or "mask_sample"
        detail = _text(row.get("failure_reason")) or _text(row.get("_ng_failure_message"))
        return outcome_of_failure(kind), f"{kind}: {detail}" if detail else kind
    by_steps = outcome_of_steps(row)
    if by_steps is not None:
        return by_steps
    response = row.get("response")
    return _response_outcome(cast("dict[str, Any]", response)) if isinstance(response, dict) else (Outcome.OK, None)


def outcome_of_steps(row: Mapping[str, Any]) -> tuple[Outcome, str] | None:
    """How an episode by steps ended, where that is not its own end: unjudged, or cut. None for every other row."""
    if row.get("truncated") is not True or row.get("terminated") is not False:
        return None
    if info_of(row).get(JUDGED) is False:
        return Outcome.VERIFIER_FAILED, "the agent stopped before the environment judged: raise its max_steps"
    return Outcome.TRUNCATED, "truncated"


def info_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The verifier's fields of an episode by steps, which NeMo Gym keeps in `info`; empty for every other row."""
    info = row.get("info")
    is_by_steps = type(row.get("terminated")) is bool and type(row.get("truncated")) is bool
    return cast("dict[str, Any]", info) if is_by_steps and isinstance(info, dict) else {}


def _response_outcome(response: dict[str, Any]) -> tuple[Outcome, str | None]:
    status = response.get("status")
    if status in (None, "completed"):
        return Outcome.OK, None
    if status == "incomplete":
        details = response.get("incomplete_details")
        reason = cast("dict[str, Any]", details).get("reason") if isinstance(details, dict) else None
        return Outcome.TRUNCATED, _text(reason) or "incomplete"
    if status in ("failed", "cancelled"):
        error = response.get("error")
        text = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else error
        return Outcome.MODEL_FAILED, _text(text) or f"response {status}"
    return Outcome.OK, None


def outcome_of_failure(kind: str) -> Outcome:
    """The outcome that a failure's name speaks of; the environment's when it names nobody."""
    name = kind.lower()
    if "timeout" in name or "timed_out" in name or "time_limit" in name:
        return Outcome.TIMED_OUT
    if "verif" in name or "judge" in name or "reward" in name:
        return Outcome.VERIFIER_FAILED
    if "model" in name or "policy" in name or "generation" in name or "context" in name:
        return Outcome.MODEL_FAILED
    return Outcome.ENVIRONMENT_FAILED


def environment_of(row: dict[str, Any]) -> str | None:
    """The environment's name: the agent's, or the environment server's."""
    agent = row.get("agent_ref")
    name = cast("dict[str, Any]", agent).get("name") if isinstance(agent, dict) else None
    return _text(name) or _text(row.get("_ng_environment_server"))


def index_of(row: dict[str, Any], field: str) -> int | None:
    """An index stamp as an int; None when it is absent or no whole number of 64 bits."""
    value = row.get(field)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def task_id_of(environment: str | None, task_index: int | None, params: dict[str, Any]) -> str:
    """The task's identity: its index in its environment, or a hash of what was asked."""
    if task_index is not None:
        return f"{environment or 'task'}/{task_index}"
    asked = {key: value for key, value in params.items() if value is not None and key not in SAMPLING_SETTINGS}
    return hashlib.blake2b(canonical_bytes([environment, asked]), digest_size=8).hexdigest()


def canonical_bytes(value: object) -> bytes:
    """A JSON value as bytes that are equal exactly for equal values, whatever the order of their keys."""
    try:
        return msgspec.json.encode(value, order="deterministic")
    except (UnicodeEncodeError, OverflowError):  # lone surrogates
        return json.dumps(value, sort_keys=True).encode()
    except RecursionError:
        raise RolloutError("the row is nested too deeply") from None


def reward_of(row: dict[str, Any]) -> float:
    """The reward of a scored row; raises `RolloutError` where it is no finite number."""
    value = row.get("reward")
    if value is None:
        raise RolloutError("the row has no reward", expected="a number in `reward`")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RolloutError(f"reward is {kind_of(value)} ({str(value)[:40]!r})", expected="a number")
    try:
        reward = float(value)
    except OverflowError:
        reward = math.inf
    if not abs(reward) <= LARGEST_REWARD:  # false for NaN too
        raise RolloutError(f"reward is {reward}", expected="a finite number")
    return reward


def _params(row: dict[str, Any], task: dict[str, Any] | None, *, required: bool) -> dict[str, Any]:
    params = row.get("responses_create_params")
    if params is None and task is not None:
        params = task.get("responses_create_params")
    if not isinstance(params, dict):
        if required:
            raise RolloutError(f"responses_create_params is {kind_of(params)}", expected="an object with `input`")
        return {}
    params = cast("dict[str, Any]", params)
    if required and not isinstance(params.get("input"), (str, list)):
        raise RolloutError(
            f"responses_create_params.input is {kind_of(params.get('input'))}", expected="a string or a list of items"
        )
    return params


def _output(row: dict[str, Any], *, required: bool) -> list[dict[str, Any]]:
    response = row.get("response")
    output = cast("dict[str, Any]", response).get("output") if isinstance(response, dict) else None
    if output is None:
        output = row.get("output")
    if isinstance(output, str):
        return [{"type": "message", "role": "assistant", "content": output}]
    if not isinstance(output, list):
        if required:
            raise RolloutError(f"output is {kind_of(output)}", expected="a list of items in response.output")
        return []
    items = cast("list[Any]", output)
    if set(map(type, items)) <= {dict}:
        return items
    items = [inner for item in items for inner in (cast("list[Any]", item) if isinstance(item, list) else [item])]
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            if not required:
                return []
            raise RolloutError(f"output[{index}] is {kind_of(item)}", expected="an object")
    return items


def check_tokens(output: list[dict[str, Any]]) -> None:
    """Raise `RolloutError` for broken token fields; sound ones pass quickly, of others `turns_of` tells the fault."""
    for item in output:
        has_ids = PROMPT_IDS in item or SAMPLED_IDS in item or LOGPROBS in item
        if has_ids and not _tokens_are_sound(item):
            turns_of(output)
            return


def _tokens_are_sound(item: dict[str, Any]) -> bool:
    try:
        fields = msgspec.convert(item, _TokenFields)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    sampled, logprobs = fields.generation_token_ids, fields.generation_log_probs
    return len(sampled) == len(logprobs) and all(map(math.isfinite, logprobs))


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row that are neither its reward nor stamps nor answers; true and false as 1 and 0.

    Those of an episode by steps stand in its `info`, and are called as they are found, `info.num_steps`.
    """
    metrics = {key: float(value) for key, value in row.items() if type(value) in NUMBERS and is_metric(key, value)}
    for key, value in info_of(row).items():
        if key != JUDGED and is_metric(key, value):
            metrics[f"info.{key}"] = float(value)
    return metrics


def is_metric(name: str, value: object) -> bool:
    """Whether a field of a row is one of its `metrics_of`."""
    if type(value) not in NUMBERS or name in NOT_METRICS or name.startswith("_ng_"):
        return False
    return _finite(value) is not None


def _components(row: dict[str, Any]) -> dict[str, float]:
    found = row.get("reward_components") or info_of(row).get("reward_components")
    if not isinstance(found, dict):
        return {}
    numbers = {str(key): _finite(value) for key, value in cast("dict[Any, Any]", found).items()}
    return {key: number for key, number in numbers.items() if number is not None}


def _finite(value: object) -> float | None:
    if not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None

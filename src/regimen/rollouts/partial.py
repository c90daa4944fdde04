"""What selection needs of a row, without decoding the rest.

In: a line of a rollouts file. Out: an `Entry`: its task, outcome and reward, a hash of its prompt, the number of
sampled tokens, and a hash of fields that the caller names.
A finished row of the usual shape is decoded into a typed record that leaves nothing to judge; another one is decoded
in part and judged by the same functions as a whole one; any other row is read whole. So every row gets what the reader
would give it, except that the token fields beyond the sampled ids, nesting near the parser's limit and numbers of
thousands of digits are looked at only when the row is read whole.
Refuses, with `RolloutError`, what the reader refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from json import decoder, scanner
from typing import Any, Literal, TypedDict, cast

import msgspec
from xxhash import xxh3_64_intdigest

from regimen.errors import RolloutError
from regimen.rollouts.fields import CODES, HAS_ROLLOUT_INDEX, HAS_TASK_INDEX, OUTCOMES, SELECTED, SIGN
from regimen.rollouts.lines import BYTE_ORDER_MARK, LongLine, decode_row, is_blank
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.reader import failed_rollout, failure_class
from regimen.rollouts.records import (
    LARGEST_REWARD,
    Rollout,
    Source,
    canonical_bytes,
    environment_of,
    index_of,
    outcome_of,
    reward_of,
    rollout_from_row,
    task_id_of,
)
from regimen.rollouts.report import count
from regimen.rollouts.siblings import TaskIndex

Where = Callable[[Mapping[str, object]], bool]

SCORED = frozenset(outcome for outcome in OUTCOMES if outcome.is_scored)
USUAL_FLAGS, OK = HAS_TASK_INDEX | HAS_ROLLOUT_INDEX | SELECTED, CODES[Outcome.OK]
NO_REWARD = float("nan")
NOTHING = msgspec.Raw(b"")
NOWHERE = Source("", 0)
PROMPT_FIELDS = ("input", "instructions", "tools")
# Fields that are decoded in part: a condition on them needs the whole row.
PARTIAL_FIELDS = frozenset({"responses_create_params", "response", "output"})
# What `outcome_of`, `environment_of`, `index_of` and `reward_of` look at, besides the response.
WHOLE_FIELDS = (
    "regimen", "mask_sample", "failure_kind", "failure_reason", "_ng_failure_class", "_ng_failure_message",
    "agent_ref", "_ng_environment_server", "_ng_task_index", "_ng_rollout_index", "reward", "terminated", "truncated",
    "info",
)  # fmt: skip


# One row in numbers: environment, flags, outcome, task (its index plus 2**63, or the hash that is its identity without
# one), rollout index, reward, prompt, number of sampled tokens, hash of the named fields (0: not taken). A plain tuple,
# as it is made for every row.
Entry = tuple[int, int, int, int, int, float, int, int, int]


class _Item(msgspec.Struct, gc=False):
    """An item of the output: only its sampled ids are looked at."""

    generation_token_ids: list[int] | None = None


class _Params(msgspec.Struct, gc=False):
    """The parts of a request that make the prompt, as they stand in the line."""

    input: msgspec.Raw
    instructions: msgspec.Raw = NOTHING
    tools: msgspec.Raw = NOTHING


class _Response(TypedDict, total=False):
    output: list[_Item] | None
    status: Any


class _Finished(msgspec.Struct, gc=False):
    output: list[_Item]
    status: Literal["completed"] | None = None


class _Agent(msgspec.Struct, gc=False):
    name: str


class _Stamp(msgspec.Struct, gc=False):
    outcome: Literal["ok"] = "ok"


class _Usual(msgspec.Struct, gc=False):
    """A finished row: what `outcome_of` would call OK. The marks of a failure must be missing or null."""

    responses_create_params: _Params
    response: _Finished
    reward: float
    agent_ref: _Agent
    task_index: int = msgspec.field(name="_ng_task_index")
    rollout_index: int = msgspec.field(name="_ng_rollout_index")
    mask_sample: bool | None = None
    truncated: bool | None = None
    failure_kind: None = None
    failure_class: None = msgspec.field(name="_ng_failure_class", default=None)
    regimen: _Stamp | None = None


class RowScanner:
    """Makes entries of lines and counts what it sees; one for each stretch of a file."""

    def __init__(
        self, tasks: TaskIndex | None, fields: Sequence[str], where: Where | None, alike: Sequence[str] = ()
    ) -> None:
        self.environments: dict[str | None, int] = {None: 0}
        self.outcomes: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.with_task = 0
        self._tasks = tasks
        self._where = where
        self._fields = frozenset(field.split(".")[0] for field in fields) | frozenset(fields)
        whole = dict.fromkeys([*WHOLE_FIELDS, *sorted(self._fields)], Any)
        partial = {"responses_create_params": _Params, "response": _Response | None, "output": list[_Item] | None}
        self._decode = _decoder({**whole, **partial})
        self._decode_params = _decoder({"responses_create_params": dict[str, Any]})
        self._is_partial = where is None or not self._fields & PARTIAL_FIELDS
        self._decode_usual, self._places = _usual_decoder(alike) if where is None and tasks is None else (None, [])

    def entry(self, line: bytes) -> Entry:
        """The entry of a line that is not blank; raises `RolloutError` where the row is bad."""
        if type(line) is not LongLine and (line.isascii() or _is_text(line)):
            found = self._usual_entry(line) or (self._partial_entry(line) if self._is_partial else None)
            if found is not None:
                return found
        return self._whole_entry(line)

    def failed_entry(self, line: bytes) -> Entry:
        """The entry of a line of a failures file; only a blank line is refused."""
        if is_blank(line):
            raise RolloutError("the line is blank")
        rollout = failed_rollout(line, NOWHERE)
        count(self.failures, failure_class(rollout))
        return self._entry_of(rollout, _prompt_of_line(line, rollout))

    def _usual_entry(self, line: bytes) -> Entry | None:
        """The entry of a finished row of the usual shape with its stamps; None for any other row."""
        if self._decode_usual is None:
            return None
        try:
            row = self._decode_usual(line)
        except (msgspec.DecodeError, RecursionError):
            return None
        task, rollout, params, name = row.task_index, row.rollout_index, row.responses_create_params, row.agent_ref.name
        is_marked = row.mask_sample or row.truncated or not name or abs(row.reward) > LARGEST_REWARD
        asked = bytes(params.input)
        if is_marked or not (-SIGN <= task < SIGN and -SIGN <= rollout < SIGN) or asked[0] not in b'"[':
            return None
        environment = self.environments.get(name)
        if environment is None:
            environment = self.environments[name] = len(self.environments)
        self.outcomes[Outcome.OK] = self.outcomes.get(Outcome.OK, 0) + 1
        num_sampled = 0
        for item in row.response.output:
            if item.generation_token_ids:
                num_sampled += len(item.generation_token_ids)
        prompt = xxh3_64_intdigest(b"\n".join((asked, params.instructions, params.tools)))
        alike = xxh3_64_intdigest(b"\n".join([getattr(row, place) for place in self._places])) if self._places else 0
        return environment, USUAL_FLAGS, OK, task + SIGN, rollout, row.reward, prompt, num_sampled, alike

    def _partial_entry(self, line: bytes) -> Entry | None:
        """The entry of a row of the usual shape; None where the row must be read whole to be judged."""
        try:
            row = self._decode(line)
            outcome, _ = outcome_of(row)
            reward = reward_of(row) if outcome in SCORED else NO_REWARD
            params = row["responses_create_params"]
            response = row.get("response")
            output = response.get("output") if response else None
            items = output if output is not None else row["output"]
            asked = bytes(params.input)
            if asked[0] not in b'"[' or items is None:
                return None
            task_index, environment = index_of(row, "_ng_task_index"), environment_of(row)
            task = task_index + SIGN if task_index is not None else self._hashed_task(line, environment)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RolloutError, KeyError):
            return None
        num_sampled = 0
        for item in items:
            if item.generation_token_ids:
                num_sampled += len(item.generation_token_ids)
        if self._tasks is not None:
            self.with_task += self._tasks.place(row) is not None
        prompt = _prompt(asked, params.instructions, params.tools)
        return self._finish(row, environment, outcome, task, task_index is not None, reward, prompt, num_sampled)

    def _hashed_task(self, line: bytes, environment: str | None) -> int:
        return int(task_id_of(environment, None, self._decode_params(line)["responses_create_params"]), 16)

    def _whole_entry(self, line: bytes) -> Entry:
        row = decode_row(line)
        task = self._tasks.find(row) if self._tasks is not None else None
        rollout = rollout_from_row(row, NOWHERE, task)
        self.with_task += task is not None
        return self._entry_of(rollout, _prompt_of_line(line, rollout))

    def _entry_of(self, rollout: Rollout, prompt: int) -> Entry:
        has_index = rollout.task_index is not None
        task = rollout.task_index + SIGN if rollout.task_index is not None else int(rollout.task_id, 16)
        reward = NO_REWARD if rollout.reward is None else rollout.reward
        sampled = (item.get("generation_token_ids") for item in rollout.output)
        num_sampled = sum(len(cast("list[Any]", ids)) for ids in sampled if isinstance(ids, list))
        return self._finish(
            rollout.row, rollout.environment, rollout.outcome, task, has_index, reward, prompt, num_sampled
        )

    def _finish(
        self,
        row: dict[str, Any],
        environment: str | None,
        outcome: Outcome,
        task: int,
        has_index: bool,
        reward: float,
        prompt: int,
        num_sampled: int,
    ) -> Entry:
        rollout_index = index_of(row, "_ng_rollout_index")
        flags = HAS_TASK_INDEX if has_index else 0
        if rollout_index is not None:
            flags |= HAS_ROLLOUT_INDEX
        if self._where is None or self._where({field: row[field] for field in self._fields if field in row}):
            flags |= SELECTED
        names = self.environments
        known = names.get(environment)
        if known is None:
            known = names[environment] = len(names)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        return known, flags, CODES[outcome], task, rollout_index or 0, reward, prompt, num_sampled, 0


def _is_text(line: bytes) -> bool:
    try:
        return bool(line.decode())
    except UnicodeDecodeError:
        return False


def _usual_decoder(alike: Sequence[str]) -> tuple[Callable[[bytes], _Usual], list[str]]:
    """Decodes usual rows with the named fields as they stand in the line, and the attributes that hold these."""
    names = {f"alike_{number}": name for number, name in enumerate(alike)}
    fields = [(place, msgspec.Raw, msgspec.field(name=name, default=NOTHING)) for place, name in names.items()]
    row = cast("type[_Usual]", msgspec.defstruct("Usual", fields, bases=(_Usual,), gc=False))
    return msgspec.json.Decoder(row).decode, list(names)


def _decoder(fields: dict[str, Any]) -> Callable[[bytes], dict[str, Any]]:
    """Decodes the named members of an object as the given types, and skips the others."""
    make_type = cast("Any", TypedDict)
    return msgspec.json.Decoder(make_type("Row", fields, total=False)).decode


def _prompt(asked: bytes, instructions: Any, tools: Any) -> int:
    return xxh3_64_intdigest(b"\n".join((asked, instructions, tools)))


def _prompt_of_line(line: bytes, rollout: Rollout) -> int:
    """The hash of the prompt as it stands in the line; of its values where the request is the task row's."""
    if not isinstance(rollout.row.get("responses_create_params"), dict):
        return _prompt(*(canonical_bytes(rollout.params.get(name)) for name in PROMPT_FIELDS))
    try:
        text = line.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogatepass")
        start, _ = _members(text, text.index("{"))["responses_create_params"]
        parts = _members(text, start)
    except (ValueError, RecursionError, StopIteration, KeyError):  # the row itself could be read another way
        return _prompt(*(canonical_bytes(rollout.params.get(name)) for name in PROMPT_FIELDS))
    raw = (text[slice(*parts.get(name, (0, 0)))].encode("utf-8", "surrogatepass") for name in PROMPT_FIELDS)
    return _prompt(*raw)


_space = re.compile(r"[ \t\n\r]*")
_scan_once = cast("Callable[[str, int], tuple[Any, int]]", cast("Any", scanner).make_scanner(json.JSONDecoder()))
_scan_string = cast("Callable[[str, int], tuple[str, int]]", cast("Any", decoder).scanstring)


def _members(text: str, start: int) -> dict[str, tuple[int, int]]:
    """Where the values of a sound JSON object stand; `start` is the place of its brace."""

    def after_space(place: int) -> int:
        found = _space.match(text, place)
        return found.end() if found else place

    members: dict[str, tuple[int, int]] = {}
    place = after_space(start + 1)
    while text[place] != "}":
        key, place = _scan_string(text, place + 1)
        begin = after_space(after_space(place) + 1)
        _, end = _scan_once(text, begin)
        members[key] = (begin, end)
        place = after_space(end)
        if text[place] == ",":
            place = after_space(place + 1)
    return members

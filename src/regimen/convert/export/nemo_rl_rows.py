"""The rows of a training configuration in the shapes that NeMo RL's data sets load.

In: an export request. Out: `data/gym_train/rows.jsonl` and `data/gym_validation/rows.jsonl` (NeMo RL names a task by
the last two parts of the path, cut at the first dot), and the keys of `data.<name>` that read them. The data sets of a
mixture become one file.
Refuses mixtures that NeMo RL cannot train on; and with the line: conversations that do not end with the assistant, GRPO
prompts that begin with a system message (NeMo RL's math processor would take it for the problem), columns that its
loader would change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from regimen.config.schema import DatasetConfig
from regimen.config.source import Tree
from regimen.convert.export.nemo_rl_mixture import check_mixtures
from regimen.convert.export.request import ENTRIES, ExportRequest
from regimen.convert.export.rows import (
    ColumnShape,
    Message,
    Row,
    chat_messages,
    chat_tools,
    field_of,
    message_notes,
    read_rows,
    with_text_arguments,
    write_rows,
)
from regimen.errors import ConfigError, ConvertError


@dataclass
class DataSet:
    """A written file: how many rows, and the keys of its entry in the configuration."""

    num_rows: int
    keys: Tree


@dataclass
class Reading:
    """What turns rows of one file: the entry, the keys given for it, what to count, what a first look found.

    `name` is the entry's in the configuration, `num_rows` how many rows the first look saw.
    """

    name: str
    entry: DatasetConfig
    given: Tree
    path: Path
    tally: Counter[str] = field(default_factory=lambda: Counter[str]())
    left_out: set[str] = field(default_factory=lambda: set[str]())
    text_arguments: bool = False
    prompts_are_messages: bool = False
    num_rows: int = 0

    def messages(self, value: object, where: str) -> list[Message]:
        """The value as chat messages."""
        found = chat_messages(value, where, self.tally)
        return with_text_arguments(found) if self.text_arguments else found

    def only(self, row: Row, *used: str) -> None:
        """Remember the columns of `row` that are not written."""
        self.left_out.update(set(row) - set(used))


def write_data(request: ExportRequest) -> dict[str, DataSet]:
    """Write the rows of `data.train` and `data.validation`; the entries that are there. A mixture is one file."""
    check_mixtures(request)
    written: dict[str, DataSet] = {}
    for name in ENTRIES:
        entry: DatasetConfig | None = getattr(request.config.data, name)
        if entry is not None:
            readings = _readings(request, name, entry)
            if readings:
                written[name] = _write(request, name, readings)
    return written


def _readings(request: ExportRequest, name: str, entry: DatasetConfig) -> list[Reading]:
    """What reads the entry, for each data set of a mixture; nothing where a conversion left validation without rows."""
    readings: list[Reading] = []
    for number, (part, given) in enumerate(zip(entry.sources, request.given_of(name), strict=True)):
        own = name if entry.parts is None else f"{name}.{number}"
        if part.dataset_name == "Environment":
            raise ConfigError(
                "NeMo RL cannot play an environment of Regimen",
                where=f"data.{own}.dataset_name",
                expected="NemoGymDataset, or ResponseDataset",
                fix="collect, `regimen convert --to grpo`, and name the file that it writes",
            )
        path = request.data_path(own, part)
        if path is not None:
            readings.append(Reading(f"data.{own}", part, given, path))
    return readings


def _write(request: ExportRequest, name: str, readings: list[Reading]) -> DataSet:
    keys: Tree = {}
    makers: list[Make] = []
    for reading in readings:
        dataset_name, make = _shape_of(request, reading)
        makers.append(make)
        keys = {"dataset_name": dataset_name, **_checked(request, reading, dataset_name, make)}
    rows = [_rows(reading, make) for reading, make in zip(readings, makers, strict=True)]
    inside = f"data/gym_{name}/rows.jsonl"
    num_rows = write_rows(request.folder / inside, rows[0] if len(rows) == 1 else _mixed(request, name, readings, rows))
    request.rows[inside] = num_rows
    for reading in readings:
        for text in [*message_notes(reading.tally), *_notes(reading)]:
            request.note(f"{reading.name}: {text}")
    return DataSet(num_rows, {**keys, "data_path": str(request.home / inside), "split": "train"})


def _mixed(request: ExportRequest, name: str, readings: list[Reading], rows: list[Iterator[Row]]) -> Iterator[Row]:
    """Rows of several data sets in turn by weight, as they are trained on here: until one has no more.

    Task indices tell apart what one file holds, so they are given anew.
    """
    drawn = dict.fromkeys(range(len(rows)), 0)
    for index, number in enumerate(request.turns({n: reading.entry.weight for n, reading in enumerate(readings)})):
        row = next(rows[number], None)
        if row is None:
            break
        drawn[number] += 1
        yield {**row, "_ng_task_index": index} if "_ng_task_index" in row else row
    shares = ", ".join(f"{drawn[n]} of {r.num_rows} rows of {r.entry.data_path}" for n, r in enumerate(readings))
    request.note(f"data.{name}: {len(rows)} data sets become one file, in turn by weight: {shares}")


def _checked(request: ExportRequest, reading: Reading, dataset_name: str, make: Make) -> Tree:
    """Look at all rows, and refuse or tell what the loader does to them; the keys that make it keep them."""
    shape = _look(reading, make)
    keys: Tree = {}
    if dataset_name == "openai_format" and not shape.is_kept():
        keys["use_preserving_dataset"] = True
        request.note(
            f"{reading.name}: rows differ in their keys, so use_preserving_dataset: true keeps them as they are"
        )
    elif dataset_name == "openai_format" and reading.given.get("use_preserving_dataset"):
        request.note(f"{reading.name}.use_preserving_dataset: left out, as all rows have the same keys")
    elif dataset_name not in ("openai_format", "NemoGymDataset"):
        _check_columns(request, reading, make, shape)
    if request.config.grpo is None and reading.path.with_name(f"{reading.path.stem}.sidecar.jsonl").is_file():
        request.note(
            f"{reading.name}: the sampled token ids beside the rows stay behind; NeMo RL tokenises the text again, and "
            "trains every assistant message, those that were part of the prompt too"
        )
    return keys


Make = Callable[[Row, str, Reading], Row]


def _shape_of(request: ExportRequest, reading: Reading) -> tuple[str, Make]:
    """NeMo RL's data set for the rows, and what makes one of them."""
    name, algorithm = reading.entry.dataset_name, request.config.algorithm
    first = next(read_rows(reading.path))[1]
    if algorithm == "sft" and name == "ResponseDataset" and "messages" not in first:
        return name, _exchange
    if algorithm == "sft":
        if name != "openai_format":
            request.note("data: rows with messages are written for openai_format, which reads their tools too")
        return "openai_format", _conversation
    makers: dict[str, Make] = {
        "BinaryPreferenceDataset": _binary,
        "PreferenceDataset": _ranked,
        "ResponseDataset": _question,
        "NemoGymDataset": _task,
    }
    return name, makers[name]


def _rows(reading: Reading, make: Make) -> Iterator[Row]:
    return (make(row, where, reading) for where, row in read_rows(reading.path, reading.entry.num_tasks))


def _look(reading: Reading, make: Make) -> ColumnShape:
    """A first reading: what the columns hold."""
    shape = ColumnShape()
    if reading.entry.dataset_name == "BinaryPreferenceDataset":
        prompts = (field_of(row, reading.entry.prompt_key, where) for where, row in read_rows(reading.path))
        reading.prompts_are_messages = any(isinstance(prompt, list) for prompt in prompts)
    for number, row in enumerate(_rows(reading, make), 1):
        shape.see(row)
        reading.num_rows = number
    reading.tally.clear()
    return shape


def _check_columns(request: ExportRequest, reading: Reading, make: Make, shape: ColumnShape) -> None:
    """Data sets that are loaded as columns: arguments that differ become text; what cannot be kept is refused."""
    if not shape.is_kept() and "tool_calls" in _keys_below(shape):
        reading.text_arguments = True
        shape = _look(reading, make)
        request.note(
            f"{reading.name}: arguments of tool calls are written as JSON text, as NeMo RL loads preference rows as "
            "columns and would fill every call with the arguments of all; the chat template must take text there"
        )
    conflict = shape.conflict()
    if conflict is not None:
        raise ConvertError(
            f"NeMo RL loads rows as columns, and {conflict}",
            where=str(reading.path),
            expected="the same type in every row, and other text than dates",
            fix="write these values in one way",
        )
    if not shape.is_kept():
        request.note(f"{reading.name}: keys that a message does not have come back as null from NeMo RL's loader")


def _keys_below(shape: ColumnShape) -> set[str]:
    keys = {key.removeprefix(".") for key in shape.fields}
    for below in shape.fields.values():
        keys |= _keys_below(below)
    return keys


def _conversation(row: Row, where: str, reading: Reading) -> Row:
    """SFT: `{messages, tools?}`, ended by the assistant."""
    entry, given = reading.entry, reading.given
    messages = reading.messages(field_of(row, entry.chat_key, where), where)
    used = [entry.chat_key, entry.tool_key]
    system = given.get("system_prompt")
    if given.get("system_key") in row:
        system = row[given["system_key"]]
        used.append(given["system_key"])
    if system:
        messages = [{"role": "system", "content": str(system)}, *messages]
    _check_last(messages, where)
    reading.only(row, *used)
    tools = chat_tools(row.get(entry.tool_key), where)
    return {"messages": messages, "tools": tools} if tools else {"messages": messages}


def _check_last(messages: list[Message], where: str) -> None:
    if messages[-1]["role"] != "assistant":
        raise ConvertError(
            f"the last message is of the {messages[-1]['role']}",
            where=where,
            expected="the assistant's: NeMo RL refuses the file otherwise",
            fix="cut what follows the last answer, or convert the rollouts again",
        )


def _exchange(row: Row, where: str, reading: Reading) -> Row:
    """SFT: `{input, output}`, both text."""
    entry = reading.entry
    reading.only(row, entry.input_key, entry.output_key)
    question, answer = (field_of(row, key, where) for key in (entry.input_key, entry.output_key))
    return {"input": _as_text(question, where, reading), "output": _as_text(answer, where, reading)}


def _as_text(value: object, where: str, reading: Reading) -> str:
    """A number as its digits: NeMo RL compares text, and a JSON number scores 0 for right answers."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConvertError(f"is {value!r:.60}", where=where, expected="a text or a number")
    reading.tally["numbers"] += 1
    return str(value)


def _binary(row: Row, where: str, reading: Reading) -> Row:
    """DPO: `{prompt, chosen, rejected}`; all prompts are texts or all are messages."""
    entry = reading.entry
    reading.only(row, entry.prompt_key, entry.chosen_key, entry.rejected_key)
    prompt = field_of(row, entry.prompt_key, where)
    if reading.prompts_are_messages:
        if not isinstance(prompt, list):
            prompt = [{"role": "user", "content": _as_text(prompt, where, reading)}]
        prompt = reading.messages(cast("object", prompt), where)
    else:
        prompt = _as_text(prompt, where, reading)
    chosen, rejected = (
        _as_text(field_of(row, key, where), where, reading) for key in (entry.chosen_key, entry.rejected_key)
    )
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _ranked(row: Row, where: str, reading: Reading) -> Row:
    """DPO: `{context, completions}` with ranks 0 and 1."""
    reading.only(row, "context", "completions")
    completions = field_of(row, "completions", where)
    if not isinstance(completions, list) or len(cast("list[Any]", completions)) != 2:
        raise ConvertError("has not two completions", where=where, expected="one of rank 0 and one of rank 1")
    ranked = sorted(cast("list[Row]", completions), key=lambda completion: field_of(completion, "rank", where))
    if ranked[0]["rank"] == ranked[1]["rank"]:
        raise ConvertError("both completions have the same rank", where=where, expected="the better one first")
    sides = [reading.messages(field_of(completion, "completion", where), where) for completion in ranked]
    for side in sides:
        _check_last(side, where)
    reading.tally["long_completions"] += any(len(side) > 1 for side in sides)
    return {
        "context": reading.messages(field_of(row, "context", where), where),
        "completions": [{"rank": rank, "completion": side} for rank, side in enumerate(sides)],
    }


def _question(row: Row, where: str, reading: Reading) -> Row:
    """GRPO: `{input, output}`: one question of the user, and the answer that the verifier compares with."""
    entry = reading.entry
    if "messages" in row and entry.input_key not in row:
        messages = chat_messages(row["messages"], where, reading.tally)
        question, answer = messages[:-1], messages[-1]["content"]
        reading.only(row, "messages")
    else:
        question, answer = field_of(row, entry.input_key, where), field_of(row, entry.output_key, where)
        reading.only(row, entry.input_key, entry.output_key)
    if isinstance(question, list):
        question = _only_question(chat_messages(cast("object", question), where, reading.tally), where)
    return {"input": _as_text(question, where, reading), "output": _as_text(answer, where, reading)}


def _only_question(messages: list[Message], where: str) -> object:
    roles = [message["role"] for message in messages]
    if roles == ["user"]:
        return messages[0]["content"]
    begins = "begins with a system message" if roles[0] in ("system", "developer") else f"is {', '.join(roles)}"
    raise ConvertError(
        f"the prompt {begins}, and NeMo RL's math processor takes the first message for the problem",
        where=where,
        expected="one message of the user",
        fix="put the instructions into the question, or train on whole tasks: `regimen convert --to grpo --format gym`",
    )


def _task(row: Row, where: str, _: Reading) -> Row:
    """GRPO in a gym: the task row as it is, which must say which agent plays it."""
    if not isinstance(row.get("responses_create_params"), dict):
        raise ConvertError("is no task row", where=where, expected="responses_create_params")
    agent = row.get("agent_ref")
    named = isinstance(agent, dict) and bool(cast("Row", agent).get("name"))
    if not named and not row.get("task_source"):
        raise ConvertError(
            "has no agent_ref, so that NeMo Gym cannot tell who plays the task",
            where=where,
            expected="agent_ref: {type: responses_api_agents, name: <agent of the gym's configuration>}",
            fix="add it to the task rows, and convert again",
        )
    return row


def _notes(reading: Reading) -> list[str]:
    """What became of rows and columns."""
    notes: list[str] = []
    tally, left_out = reading.tally, set(reading.left_out)
    if "task_name" in left_out:
        left_out.discard("task_name")
        notes.append("the column task_name is left out, as NeMo RL adds its own and refuses a second")
    if "tools" in left_out:
        left_out.discard("tools")
        notes.append("the tools of the rows are left out, as NeMo RL's preference data sets show the model none")
    if left_out:
        notes.append(f"columns that NeMo RL does not read are left out: {', '.join(sorted(left_out))}")
    if tally["numbers"]:
        notes.append(f"{tally['numbers']} numbers are written as text")
    if tally["long_completions"]:
        notes.append(
            f"{tally['long_completions']} of {reading.num_rows} pairs have completions of several messages; NeMo RL "
            "trains on the last message of each only"
        )
    if reading.entry.num_tasks is not None:
        notes.append(f"the first {reading.num_rows} rows, as num_tasks says")
    return notes

"""The rows of a training configuration in the shapes that TRL's trainers load.

In: an export request. Out: `data/train.jsonl` and `data/validation.jsonl`: `{messages}`, `{prompt, chosen, rejected}`
or `{prompt, answer | task}`, conversational throughout, with `tools` in every row where any row has some.
Refuses mixtures of data sets; and with the line: rows without the configured fields, task rows without a prompt of
text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

from regimen.config.schema import DatasetConfig
from regimen.convert.export.request import ENTRIES, ExportRequest
from regimen.convert.export.rows import (
    Row,
    chat_messages,
    chat_tools,
    field_of,
    message_notes,
    read_rows,
    write_rows,
)
from regimen.errors import ConfigError, ConvertError, RolloutError
from regimen.rollouts.messages import input_messages

Make = Callable[[Row, str, DatasetConfig, Counter[str]], Row]


def write_data(request: ExportRequest) -> dict[str, list[str]]:
    """Write the rows; the columns of each file by the name of its entry."""
    columns: dict[str, list[str]] = {}
    for name in ENTRIES:
        entry: DatasetConfig | None = getattr(request.config.data, name)
        source = None if entry is None else _source(request, name, entry)
        if entry is not None and source is not None:
            columns[name] = _write(request, name, entry, source)
    return columns


Rows = Callable[[], Iterator[tuple[str, Row]]]


def _source(request: ExportRequest, name: str, entry: DatasetConfig) -> Rows | None:
    """What reads the rows of an entry, as often as one likes."""
    if entry.parts is not None:
        raise ConfigError(
            f"mixes {len(entry.parts)} data sets, and an export to TRL is of one",
            where=f"data.{name}",
            fix="put their rows into one file, or export each by itself",
        )
    if entry.dataset_name == "Environment":
        tasks = request.tasks_of(name)
        return lambda: ((f"task {index} of data.{name}", row) for index, row in enumerate(tasks))
    path = request.data_path(name, entry)
    return None if path is None else lambda: read_rows(path, entry.num_tasks)


def _write(request: ExportRequest, name: str, entry: DatasetConfig, source: Rows) -> list[str]:
    make = MAKERS[request.config.algorithm, entry.dataset_name]
    extra: Row = {}
    if request.config.grpo is None:
        if any(row.get(entry.tool_key) for _, row in source()):
            extra["tools"] = None
        if request.config.policy.tokenizer.chat_template_kwargs:
            extra["chat_template_kwargs"] = request.config.policy.tokenizer.chat_template_kwargs
    tally: Counter[str] = Counter()
    columns: list[str] = []

    def rows() -> Iterator[Row]:
        for where, row in source():
            made = {**extra, **make(row, where, entry, tally)}
            columns[:] = columns or list(made)
            if "task" not in made:
                tally.update(f"left out {key}" for key in set(row) - _read(entry))
            yield made

    inside = f"data/{name}.jsonl"
    request.rows[inside] = write_rows(request.folder / inside, rows())
    for text in [*message_notes(tally), *_notes(tally)]:
        request.note(f"data.{name}: {text}")
    return columns


def _read(entry: DatasetConfig) -> set[str]:
    """The columns that are read."""
    keys = {getattr(entry, key) for key in DatasetConfig.model_fields if key.endswith("_key")}
    return keys | {"messages", "tools", "context", "completions"}


def _notes(tally: Counter[str]) -> list[str]:
    left_out = sorted(key.removeprefix("left out ") for key in tally if key.startswith("left out "))
    notes = [f"columns that TRL has no use for are left out: {', '.join(left_out)}"] if left_out else []
    if tally["tools"]:
        notes.append(
            f"{tally['tools']} tasks have tools, which TRL takes as Python functions only (GRPOTrainer, tools= or "
            "environment_factory=): the exported script plays one turn without them"
        )
    return notes


def _tools(row: Row, where: str, entry: DatasetConfig) -> Row:
    tools = chat_tools(row.get(entry.tool_key), where)
    return {"tools": tools} if tools else {}


def _text_message(role: str, value: object, where: str) -> Row:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConvertError(f"is {value!r:.60}", where=where, expected="a text")
    return {"role": role, "content": str(value)}


def _conversation(row: Row, where: str, entry: DatasetConfig, tally: Counter[str]) -> Row:
    if entry.dataset_name == "openai_format" or "messages" in row:
        messages = chat_messages(field_of(row, entry.chat_key, where), where, tally)
        return {"messages": messages, **_tools(row, where, entry)}
    question, answer = (field_of(row, key, where) for key in (entry.input_key, entry.output_key))
    return {"messages": [_text_message("user", question, where), _text_message("assistant", answer, where)]}


def _binary(row: Row, where: str, entry: DatasetConfig, tally: Counter[str]) -> Row:
    chosen, rejected = (field_of(row, key, where) for key in (entry.chosen_key, entry.rejected_key))
    return {
        "prompt": _prompt(field_of(row, entry.prompt_key, where), where, tally),
        "chosen": [_text_message("assistant", chosen, where)],
        "rejected": [_text_message("assistant", rejected, where)],
        **_tools(row, where, entry),
    }


def _prompt(value: object, where: str, tally: Counter[str]) -> list[Row]:
    if isinstance(value, list):
        return chat_messages(cast("object", value), where, tally)
    return [_text_message("user", value, where)]


def _ranked(row: Row, where: str, entry: DatasetConfig, tally: Counter[str]) -> Row:
    completions = field_of(row, "completions", where)
    if not isinstance(completions, list) or len(cast("list[Any]", completions)) != 2:
        raise ConvertError("has not two completions", where=where, expected="one of rank 0 and one of rank 1")
    better, worse = sorted(cast("list[Row]", completions), key=lambda one: field_of(one, "rank", where))
    return {
        "prompt": chat_messages(field_of(row, "context", where), where, tally),
        "chosen": chat_messages(field_of(better, "completion", where), where, tally),
        "rejected": chat_messages(field_of(worse, "completion", where), where, tally),
        **_tools(row, where, entry),
    }


def _question(row: Row, where: str, entry: DatasetConfig, tally: Counter[str]) -> Row:
    answer = _text_message("assistant", field_of(row, entry.output_key, where), where)["content"]
    return {"prompt": _prompt(field_of(row, entry.input_key, where), where, tally), "answer": answer}


def _task(row: Row, where: str, _: DatasetConfig, tally: Counter[str]) -> Row:
    """A gym task: its prompt, and the whole row as text for the verifier."""
    params = row.get("responses_create_params")
    if not isinstance(params, dict):
        raise ConvertError("is no task row", where=where, expected="responses_create_params")
    try:
        prompt = input_messages(cast("Row", params))
    except RolloutError as error:
        raise ConvertError(error.message, where=f"{where}, {error.where}", expected=error.expected) from None
    tally["tools"] += bool(cast("Row", params).get("tools"))
    return {"prompt": prompt, "task": json.dumps(row, ensure_ascii=False)}


MAKERS: dict[tuple[str, str], Make] = {
    ("sft", "openai_format"): _conversation,
    ("sft", "ResponseDataset"): _conversation,
    ("dpo", "BinaryPreferenceDataset"): _binary,
    ("dpo", "PreferenceDataset"): _ranked,
    ("grpo", "ResponseDataset"): _question,
    ("grpo", "NemoGymDataset"): _task,
    ("grpo", "Environment"): _task,
}

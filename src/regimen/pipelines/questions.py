"""Questions and answers as tasks: each row becomes one user message, and the ground truth an environment judges by.

In: a `ResponseDataset` section, its rows by line, an environment. Out: single-turn tasks, in the file's order.
A row is `{input, output}` under the configured keys, its input a text or chat messages, or `{messages}` whose last one
is the answer. `prompt_file` holds a template with one `{}` for the question, `system_prompt_file` a system message.
Refuses: rows without question or answer, answers that the environment cannot judge by, templates without a place.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from string import Formatter
from typing import Any

from regimen.config.schema_data import DatasetConfig
from regimen.errors import ConfigError, ConvertError, UsageError
from regimen.gym.environment import Environment, Task

Message = dict[str, Any]


def question_tasks(
    dataset: DatasetConfig, environment: Environment, rows: Mapping[int, dict[str, Any]], entry: str
) -> list[Task]:
    """One task per row; `entry` is the section below `data`, for the errors."""
    key = f"data.{entry}"
    template = _text_of(dataset.prompt_file, f"{key}.prompt_file")
    system = _text_of(dataset.system_prompt_file, f"{key}.system_prompt_file")
    if template is not None:
        check_template(template, f"{key}.prompt_file: {dataset.prompt_file}")
    tasks: list[Task] = []
    for index, (number, row) in enumerate(rows.items()):
        where = f"{dataset.data_path}:{number}"
        messages, answer = question_and_answer(row, dataset, where)
        params = {"input": _prompt(messages, template, system, where)}
        fields = _fields(environment, answer, where, key)
        agent = {"name": environment.name}
        tasks.append(Task(index, {"responses_create_params": params, **fields, "agent_ref": agent}))
    return tasks


def question_and_answer(row: dict[str, Any], dataset: DatasetConfig, where: str) -> tuple[list[Message], str]:
    """The prompt's messages, the last one the user's, and the answer as text."""
    if "messages" in row and dataset.input_key not in row:
        said = _messages(row["messages"], where)
        messages, answer = said[:-1], said[-1]["content"]
    else:
        question, answer = _field(row, dataset.input_key, where), _field(row, dataset.output_key, where)
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else _messages(question, where)
    if not messages or messages[-1]["role"] != "user" or not str(messages[-1]["content"]).strip():
        raise ConvertError(
            "has no question",
            where=where,
            expected=f"a text under {dataset.input_key!r}, or messages that end with the user's",
        )
    return messages, _answer_text(answer, where, dataset.output_key)


def check_template(template: str, where: str) -> None:
    """A template has one place for the question, written `{}`."""
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        fields = [(str(error), "", "")]
    if len(fields) == 1 and fields[0] in (("", "", None), ("0", "", None)):
        return
    raise ConfigError(
        f"has {len(fields)} places in braces" if len(fields) != 1 else f"has the place {{{fields[0][0]}}}",
        where=where,
        expected="one {} where the question goes",
        fix="write {{ and }} for braces that stay, as in \\boxed{{}}",
    )


def _prompt(messages: list[Message], template: str | None, system: str | None, where: str) -> list[Message]:
    prompt = [*messages]
    if template is not None:
        prompt[-1] = {**prompt[-1], "content": template.format(prompt[-1]["content"])}
    if system is None:
        return prompt
    if prompt[0]["role"] in ("system", "developer"):
        raise ConvertError(
            "the row has a system message of its own, and system_prompt_file another",
            where=where,
            fix="remove one of them",
        )
    return [{"role": "system", "content": system}, *prompt]


def _fields(environment: Environment, answer: str, where: str, key: str) -> dict[str, Any]:
    try:
        return environment.answer_fields(answer)
    except ConfigError as error:
        fix = error.fix or f"mend the row, or name another environment in {key}.env_name"
        raise ConvertError(error.message, where=where, expected=error.expected, fix=fix) from error


def _answer_text(answer: object, where: str, key: str) -> str:
    """The answer as it is written; a number by its digits, since verifiers read text."""
    if isinstance(answer, str) and answer.strip():
        return answer.strip()
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, float) and answer - answer == 0:  # neither infinite nor NaN
        return format(Decimal(repr(answer)), "f")
    raise ConvertError(f"the answer is {answer!r}", where=where, expected=f"a text or a number under {key!r}")


def _messages(value: object, where: str) -> list[Message]:
    """Chat messages with texts; other content cannot be asked here."""
    listed: list[Any] = value if isinstance(value, list) else []
    if not listed or not all(isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in listed):
        raise ConvertError("has no question", where=where, expected="a text, or messages of a role and a text each")
    return [{"type": "message", "role": m["role"], "content": m["content"]} for m in listed]


def _field(row: dict[str, Any], key: str, where: str) -> Any:
    if key not in row:
        there = ", ".join(row)
        raise ConvertError(f"has no field {key!r}", where=where, expected=f"one of {there} in the data keys")
    return row[key]


def _text_of(path: str | None, key: str) -> str | None:
    if path is None:
        return None
    file = Path(path)
    if not file.is_file():
        raise UsageError("there is no such file", where=f"{key}: {path}", fix=f"give its path from here, or {key}=null")
    return file.read_text(encoding="utf-8").strip("\n")

"""Problems in the rows of a training file: the same row twice, pairs of equals, answers in prompts, shared tasks.

In: `TrainingRow`s, one at a time: what trains, what was asked, who judges. Out: `Finding`s; and, between two files, the
rows whose task or prompt stands in both. Per row 24 bytes stay in memory, and where it stands.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np

from regimen.diagnosis.findings import Finding, Places, Tally, finding, num_rows
from regimen.diagnosis.leaks import is_leaked
from regimen.diagnosis.schemas import Schemas
from regimen.diagnosis.tokens import TokenRow
from regimen.rollouts.records import Source, canonical_bytes

Message = dict[str, Any]


class TrainingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row: its conversations (one, or the two sides of a pair), its prompt, and what is known of its task.

    `answers` is None where the row needs no ground truth. `task` names the task among rows of the same source.
    """

    source: Source
    conversations: list[TokenRow]
    prompt: Sequence[Message]
    task: str | None = None
    answers: list[object] | None = None


class TrainingDiagnosis:
    """Takes the rows of one file with `add`, gives `Finding`s with `finish`."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.num_rows = 0
        self._places, self._schemas = Places(), Schemas()
        self._rows, self._prompts, self._tasks = array("q"), array("q"), array("q")

    def add(self, row: TrainingRow) -> None:
        """Check one row."""
        self.num_rows += 1
        self._places.add(row.source)
        said = [conversation.messages for conversation in row.conversations]
        self._rows.append(hash(canonical_bytes([said, row.answers])))
        asked = [message.get("content") for message in row.prompt if message.get("role") == "user"]
        self._prompts.append(hash(canonical_bytes(asked)))
        self._tasks.append(0 if row.task is None else hash(row.task))
        if len(said) == 2 and said[0] == said[1]:
            self.tally.note("equal_pair", row.source)
        if row.answers is not None:
            self._check_answers(row, row.answers)
        self._check_tools(row)

    def _check_answers(self, row: TrainingRow, answers: list[object]) -> None:
        if not answers:
            self.tally.note("no_ground_truth", row.source)
        elif is_leaked(answers, {"input": list(row.prompt)}):
            self.tally.note("leaked_answer", row.source)

    def _check_tools(self, row: TrainingRow) -> None:
        for conversation in row.conversations:
            calls: list[Message] = [
                call.get("function") or call
                for message in conversation.messages
                for call in cast("list[Message]", message.get("tool_calls") or [])
            ]
            if self._schemas.tools_differ(conversation.tools):
                self.tally.note("tool_schemas_differ", row.source)
                return
            if self._schemas.keys_differ(calls):
                self.tally.note("arguments_keys_differ", row.source)
                return

    def finish(self) -> list[Finding]:
        """All findings of this file."""
        found = [finding for code, message in _MESSAGES.items() for finding in self.tally.finding(code, message)]
        rows = np.asarray(self._rows, dtype=np.int64)
        firsts = np.unique(rows, return_index=True)[1]
        repeats = np.delete(np.arange(len(rows)), firsts)
        if len(repeats):
            message = f"{num_rows(len(repeats))} equal to an earlier one of the file"
            found.append(finding("duplicate_rows", len(repeats), message, example=self._places.at(int(repeats[0]))))
        return found

    def shared_with(self, other: TrainingDiagnosis) -> list[Finding]:
        """The finding, when rows of this file have a task or a prompt of `other`, the training data."""
        shared = np.isin(np.asarray(self._prompts, np.int64), np.asarray(other._prompts, np.int64))
        tasks = np.asarray(self._tasks, np.int64)
        shared |= (tasks != 0) & np.isin(tasks, np.asarray(other._tasks, np.int64))
        rows = np.flatnonzero(shared)
        if not len(rows):
            return []
        message = f"{num_rows(len(rows))} of the validation data have a task or a prompt of the training data"
        return [finding("tasks_across_splits", len(rows), message, example=self._places.at(int(rows[0])))]


_MESSAGES = {
    "equal_pair": "{n} whose chosen and rejected side are equal",
    "no_ground_truth": "{n} without ground truth: nothing can judge an answer",
    "leaked_answer": "{n} whose prompt holds the right answer, word for word",
    "tool_schemas_differ": "{n} with a tool whose parameters are not those of the first tool of that name",
    "arguments_keys_differ": "{n} with arguments, written as objects, that have other keys than the first such call",
}

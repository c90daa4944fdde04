"""Problems in a set of rollouts, each with an example and its fix.

In: `Rollout`s, one at a time, and their `Statistics`. Out: `Finding`s, the gravest first.
Row checks (`rows.py`) look at one rollout and count; set checks (`sets.py`) read the statistics; what needs several
rows is here. Per rollout 40 bytes stay in memory: hashes, sorted at the end, and where the row stands.
"""

from __future__ import annotations

from array import array
from typing import Any, cast

import msgspec
import numpy as np

from regimen.diagnosis.findings import Finding, Places, Tally, finding, in_order, num_rows
from regimen.diagnosis.leaks import answers_of, holds_truth, is_leaked
from regimen.diagnosis.rows import ROW_CHECKS, row_findings
from regimen.diagnosis.schemas import Schemas
from regimen.diagnosis.sets import set_findings
from regimen.diagnosis.thresholds import DEFAULT_THRESHOLDS, Thresholds
from regimen.rollouts.contents import Contents, contents_of
from regimen.rollouts.records import Rollout, canonical_bytes
from regimen.rollouts.statistics import Statistics

Hashes = np.ndarray[Any, np.dtype[np.int64]]
# Stands where a row has no such hash. A real hash of 0 has a chance of 1 in 2^64.
NONE = 0


class Diagnosis:
    """Takes rollouts with `add`, gives `Finding`s with `finish`."""

    def __init__(self, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> None:
        self.thresholds = thresholds
        self.tally = Tally()
        self._places, self._schemas = Places(), Schemas()
        self._tasks, self._identities, self._prompts, self._answers = array("q"), array("q"), array("q"), array("q")
        self._num_with_truth = 0

    def add(self, rollout: Rollout, contents: Contents | None = None) -> None:
        """Check one rollout; `contents` are those of its output, where they are already known."""
        contents = contents or contents_of(rollout.output)
        self._places.add(rollout.source)
        self._tasks.append(hash(rollout.task_id))
        self._identities.append(_identity(rollout))
        stamped = rollout.task_index is not None and bool(rollout.params)
        self._prompts.append(hash(canonical_bytes(rollout.params.get("input"))) if stamped else NONE)
        self._answers.append(NONE if rollout.reward is None else contents.spoken)
        if rollout.reward is None:
            if _is_zero(rollout.row.get("reward")):
                self.tally.note("failure_as_zero", rollout.source)
            return
        self._check_row(rollout, contents)

    def _check_row(self, rollout: Rollout, contents: Contents) -> None:
        assert rollout.reward is not None
        note = self.tally.note
        if not 0 <= rollout.reward <= 1:
            note("reward_out_of_range", rollout.source)
        for code, has_problem in ROW_CHECKS.items():
            if has_problem(rollout, contents):
                note(code, rollout.source)
        if self._schemas.tools_differ(rollout.params.get("tools")):
            note("tool_schemas_differ", rollout.source)
        if self._schemas.keys_differ(contents.calls):
            note("arguments_keys_differ", rollout.source)
        answers = answers_of(rollout.task, rollout.row, rollout.params)
        self._num_with_truth += bool(answers)
        if not answers and not holds_truth(rollout.task):
            note("no_ground_truth", rollout.source)
        if answers and is_leaked(answers, rollout.params):
            note("leaked_answer", rollout.source)

    def finish(self, statistics: Statistics, num_failed: int = 0) -> list[Finding]:
        """All findings, errors first; `num_failed` more episodes stand in failures files."""
        tasks = np.asarray(self._tasks, dtype=np.int64)
        findings = [
            *set_findings(statistics, self.thresholds, num_failed),
            *row_findings(self.tally),
            *self._leaks(),
            *self._duplicates(),
            *self._several_prompts(tasks),
            *self._answer_findings(tasks),
        ]
        placed = [
            msgspec.structs.replace(found, example=found.example or self.tally.examples.get(found.code))
            for found in findings
        ]
        return in_order(placed)

    def _leaks(self) -> list[Finding]:
        if self.tally.counts["leaked_answer"] < self.thresholds.leaked_high * self._num_with_truth:
            return []
        return self.tally.finding("leaked_answer", "{n} whose prompt holds the right answer, word for word")

    def _duplicates(self) -> list[Finding]:
        identities = np.asarray(self._identities, dtype=np.int64)
        rows = np.flatnonzero(identities != NONE)
        firsts = np.unique(identities[rows], return_index=True)[1]
        repeats = np.delete(rows, firsts)
        if not len(repeats):
            return []
        message = f"{num_rows(len(repeats))} with a task and rollout index (or a response id) already seen"
        return [finding("duplicate_rows", len(repeats), message, example=self._places.at(int(repeats.min())))]

    def _several_prompts(self, tasks: Hashes) -> list[Finding]:
        prompts = np.asarray(self._prompts, dtype=np.int64)
        rows = np.flatnonzero(prompts != NONE)
        _, firsts, number = np.unique(tasks[rows], return_index=True, return_inverse=True)
        other = rows[prompts[rows] != prompts[rows][firsts][number]]
        if not len(other):
            return []
        message = f"{num_rows(len(other))} with another prompt than the first row of the same task"
        return [finding("task_with_several_prompts", len(other), message, example=self._places.at(int(other[0])))]

    def _answer_findings(self, tasks: Hashes) -> list[Finding]:
        """Answers are counted once per task where they are equal: a kind is one answer to one task."""
        answers = np.asarray(self._answers, dtype=np.int64)
        scored = answers != NONE
        kinds, counts = _distinct(tasks[scored], answers[scored])
        if not len(counts):
            return []
        starts = np.flatnonzero(np.concatenate([[True], kinds[0][1:] != kinds[0][:-1]]))
        sizes = np.add.reduceat(counts, starts)
        uniques = np.diff(np.append(starts, len(counts)))
        repeated = sizes > 1
        total, unique = int(sizes[repeated].sum()), int(uniques[repeated].sum())
        most = int(np.unique(kinds[1], return_counts=True)[1].max())
        return [*self._repeats_within(total, unique), *self._repeats_across(most, len(starts))]

    def _repeats_within(self, total: int, unique: int) -> list[Finding]:
        if total < self.thresholds.least_for_shares or unique >= self.thresholds.unique_low * total:
            return []
        message = f"only {unique} of {total} answers to repeated tasks differ ({unique / total:.0%})"
        return [finding("repeated_answers", total - unique, message)]

    def _repeats_across(self, most: int, num_tasks: int) -> list[Finding]:
        if num_tasks < self.thresholds.least_for_shares or most < self.thresholds.same_answer_high * num_tasks:
            return []
        message = f"one answer was given, word for word, to {most} of {num_tasks} tasks"
        return [finding("same_answer_everywhere", most, message)]


def _distinct(first: Hashes, second: Hashes) -> tuple[tuple[Hashes, Hashes], Hashes]:
    """The distinct pairs, sorted by `first`, and how often each stands there."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    changes = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(first)), bool), changes]))
    return (first[starts], second[starts]), np.diff(np.append(starts, len(first)))


def _identity(rollout: Rollout) -> int:
    """What makes a row the same episode as another: its two indices, or else the id of its response."""
    if rollout.task_index is not None and rollout.rollout_index is not None:
        return hash((rollout.task_id, rollout.rollout_index))
    response = rollout.row.get("response")
    found: object = cast("dict[str, Any]", response).get("id") if isinstance(response, dict) else None
    return hash((rollout.task_id, found)) if isinstance(found, str) and found else NONE


def _is_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0

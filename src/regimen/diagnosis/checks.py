"""Problems in a set of rollouts, each with an example and its fix.

In: `Rollout`s, one at a time, and their `Statistics`. Out: `Finding`s, the gravest first.
Row checks (`rows.py`) look at one rollout and count; set checks (`sets.py`) read the statistics; what needs several
rows is here. Per rollout a few hashes stay in memory.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from regimen.diagnosis.findings import ORDER, Finding, Tally
from regimen.diagnosis.rows import ROW_CHECKS, row_findings
from regimen.diagnosis.sets import set_findings
from regimen.diagnosis.thresholds import DEFAULT_THRESHOLDS, Thresholds
from regimen.rollouts.messages import item_type
from regimen.rollouts.records import Rollout, canonical_bytes
from regimen.rollouts.statistics import Statistics


class Diagnosis:
    """Takes rollouts with `add`, gives `Finding`s with `finish`."""

    def __init__(self, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> None:
        self.thresholds = thresholds
        self.tally = Tally()
        self._seen: set[tuple[str, int]] = set()
        self._prompts: dict[str, int] = {}
        self._answers: dict[str, Counter[int]] = {}

    def add(self, rollout: Rollout) -> None:
        """Check one rollout."""
        self._check_identity(rollout)
        if rollout.reward is None:
            if _is_zero(rollout.row.get("reward")):
                self.tally.note("failure_as_zero", rollout.source)
            return
        if not 0 <= rollout.reward <= 1:
            self.tally.note("reward_out_of_range", rollout.source)
        for code, has_problem in ROW_CHECKS.items():
            if has_problem(rollout):
                self.tally.note(code, rollout.source)
        answers = self._answers.setdefault(rollout.task_id, Counter())
        answers[hash(_spoken(rollout.output))] += 1

    def _check_identity(self, rollout: Rollout) -> None:
        if rollout.task_index is None:
            return
        if rollout.rollout_index is not None:
            key = (rollout.task_id, rollout.rollout_index)
            if key in self._seen:
                self.tally.note("duplicate_rows", rollout.source)
            self._seen.add(key)
        prompt = hash(canonical_bytes(rollout.params.get("input")))
        if rollout.params and self._prompts.setdefault(rollout.task_id, prompt) != prompt:
            self.tally.note("task_with_several_prompts", rollout.source)

    def finish(self, statistics: Statistics, num_failed: int = 0) -> list[Finding]:
        """All findings, errors first; `num_failed` more episodes stand in failures files."""
        findings = [
            *set_findings(statistics, self.thresholds, num_failed),
            *row_findings(self.tally),
            *self._answer_findings(),
        ]
        placed = [
            msgspec.structs.replace(found, example=found.example or self.tally.examples.get(found.code))
            for found in findings
        ]
        return sorted(placed, key=lambda found: ORDER.index(found.severity))

    def _answer_findings(self) -> list[Finding]:
        return [*self._repeats_within(), *self._repeats_across()]

    def _repeats_within(self) -> list[Finding]:
        groups = [answers for answers in self._answers.values() if answers.total() > 1]
        total, unique = sum(answers.total() for answers in groups), sum(map(len, groups))
        if total < self.thresholds.least_for_shares or unique >= self.thresholds.unique_low * total:
            return []
        return [
            Finding(
                code="repeated_answers",
                severity="warning",
                count=total - unique,
                message=f"only {unique} of {total} answers to repeated tasks differ ({unique / total:.0%})",
                fix="collect with a higher temperature (0.7 to 1.0): equal answers give equal rewards",
            )
        ]

    def _repeats_across(self) -> list[Finding]:
        tasks_with: Counter[int] = Counter()
        for answers in self._answers.values():
            tasks_with.update(answers.keys())
        if len(self._answers) < self.thresholds.least_for_shares or not tasks_with:
            return []
        most = tasks_with.most_common(1)[0][1]
        if most < self.thresholds.same_answer_high * len(self._answers):
            return []
        return [
            Finding(
                code="same_answer_everywhere",
                severity="warning",
                count=most,
                message=f"one answer was given, word for word, to {most} of {len(self._answers)} tasks",
                fix="read it: the model ignores its prompt, or the prompt lacks the question",
            )
        ]


def _is_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _spoken(output: list[dict[str, Any]]) -> str:
    """What the model said and called, without ids, as text to compare."""
    parts: list[str] = []
    for item in output:
        kind = item_type(item)
        if kind == "function_call":
            parts += (str(item.get("name")), str(item.get("arguments")))
        elif kind == "reasoning":
            parts += (str(item.get("summary")), str(item.get("content")))
        elif item.get("role") == "assistant":
            content = item.get("content")
            parts.append(content if isinstance(content, str) else str(content))
    return "\n".join(parts)

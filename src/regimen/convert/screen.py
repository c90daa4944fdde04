"""What keeps a scored rollout out of every target alike: the condition of `--where`, and prompts of the evaluation.

In: rollouts, one by one. Out: the bucket of one that is kept out, and counts for the manifest that can be added up.
Refuses, with `ConvertError`: a condition on a field that no row has, and an evaluation file that cannot be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from regimen.convert.contamination import Contaminated, Match, contaminated, prompt_text
from regimen.convert.options import ConvertOptions
from regimen.convert.where import FieldCount, Where, parse_where
from regimen.rollouts.records import Rollout

if TYPE_CHECKING:
    from regimen.convert.near import Evaluation

EXAMPLES_KEPT = 20
# Prompts whose search is remembered: repeats of a task stand near each other or come task by task.
REMEMBERED = 4096


class Screened(msgspec.Struct, kw_only=True):
    """What the screen found: rows per condition field that lack it, and excluded rows and prompts with examples."""

    missing_fields: dict[str, int] = {}
    evaluation_prompts: int = 0
    exact_rows: int = 0
    near_rows: int = 0
    examples: list[Contaminated] = []


class Screen:
    """The tests of one conversion. Several screens over parts of the rows are added up before `finish`."""

    def __init__(self, options: ConvertOptions, evaluation: Evaluation | None = None) -> None:
        self.where: Where | None = None if options.where is None else parse_where(options.where)
        self.fields = None if self.where is None else FieldCount(self.where)
        if evaluation is None and options.against is not None:
            from regimen.convert.near import read_evaluation  # numpy takes as long to load as all the rest

            evaluation = read_evaluation(Path(options.against), options.against_similarity)
        self.evaluation = evaluation
        self.found = Screened(evaluation_prompts=0 if evaluation is None else len(evaluation.lines))
        self._remembered: dict[str, Match | None] = {}
        self._shown: set[str] = set()

    @property
    def is_idle(self) -> bool:
        """Whether every rollout goes on."""
        return self.where is None and self.evaluation is None

    def rest(self) -> None:
        """Keep only what was found, which is little to send to another process."""
        self.evaluation = None
        self._remembered.clear()

    def bucket_of(self, rollout: Rollout) -> str | None:
        """The bucket of a rollout that must not go on, or None."""
        if self.fields is not None:
            self.fields.see(rollout.row)
        match = None if self.evaluation is None else self._match(rollout)
        if match is not None:
            return "contaminated"
        return "where" if self.where is not None and not self.where.matches(rollout.row) else None

    def add(self, other: Screen) -> None:
        """Add what another screen of the same options has seen."""
        if self.fields is not None and other.fields is not None:
            self.fields.add(other.fields)
        self.found.exact_rows += other.found.exact_rows
        self.found.near_rows += other.found.near_rows
        for example in other.found.examples:
            self._show(example)

    def finish(self) -> Screened:
        """What was found; raises for a field that no row has."""
        if self.fields is not None:
            self.fields.check()
            self.found.missing_fields = dict(sorted(self.fields.missing.items()))
        return self.found

    def _match(self, rollout: Rollout) -> Match | None:
        text = prompt_text(rollout.params)
        if text is None or self.evaluation is None:
            return None
        if text not in self._remembered:
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[text] = self.evaluation.find(text)
        match = self._remembered[text]
        if match is not None:
            self.found.exact_rows += match.kind == "exact"
            self.found.near_rows += match.kind == "near"
            self._show(contaminated(rollout.task_id, text, match))
        return match

    def _show(self, example: Contaminated) -> None:
        if len(self.found.examples) < EXAMPLES_KEPT and example.task_id not in self._shown:
            self._shown.add(example.task_id)
            self.found.examples.append(example)

"""Rollout files to what is in them, what is wrong with them and what to do next.

In: rollout files. Out: an `Inspection`. One pass over the rows, one row in memory at a time.
Refuses what the reader refuses. Too many bad rows do not hide the rest: the inspection carries the error.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from regimen.diagnosis.checks import Diagnosis
from regimen.diagnosis.findings import Finding, in_order
from regimen.diagnosis.reading import reading_findings
from regimen.diagnosis.recommend import Recommendation, quoted_paths, recommend
from regimen.diagnosis.thresholds import DEFAULT_THRESHOLDS, Thresholds
from regimen.diagnosis.tokens import TokenDiagnosis, token_row_of
from regimen.errors import RolloutError, UsageError
from regimen.pipelines.models import resolve_model
from regimen.rollouts.contents import contents_of
from regimen.rollouts.reader import Paths, ReadReport, RolloutReader
from regimen.rollouts.statistics import Statistics, StatisticsCollector
from regimen.tokens.template import Renderer


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `regimen inspect` shows. `error` is set when more rows were bad than allowed."""

    version: int = 1
    read: ReadReport
    statistics: Statistics
    findings: list[Finding]
    recommendation: Recommendation
    error: str | None = None


def inspect_rollouts(
    paths: Paths,
    *,
    quarantine: Path | str | None = None,
    tasks: Path | str | None = None,
    max_bad: float = 0.01,
    overwrite: bool = False,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    model: str | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
) -> Inspection:
    """Read, measure, check and advise; raises when no row could be read.

    With `model` (a folder or hub name) the tokens are looked at too, and with `max_length` their number; recorded ids
    are counted without a model.
    """
    tokens = _token_diagnosis(model, chat_template, max_length, thresholds)
    statistics, diagnosis = StatisticsCollector(), Diagnosis(thresholds)
    error = None
    with RolloutReader(paths, quarantine=quarantine, tasks=tasks, max_bad=max_bad, overwrite=overwrite) as reader:
        try:
            for rollout in reader:
                contents = contents_of(rollout.output)
                statistics.add(rollout, contents)
                diagnosis.add(rollout, contents)
                if tokens is not None and rollout.reward is not None and rollout.output:
                    row = token_row_of(rollout)
                    if row is not None:
                        tokens.add(row)
        except RolloutError as problem:
            if not (reader.report.good and reader.report.bad):
                raise
            error = str(problem)
    measured = statistics.finish()
    failed = sum(reader.report.failures.values())
    seen = [*reading_findings(reader.report), *diagnosis.finish(measured, failed)]
    findings = in_order([*seen, *(tokens.finish() if tokens is not None else [])])
    path = quoted_paths([str(path) for path in reader.paths])
    return Inspection(
        read=reader.report,
        statistics=measured,
        findings=findings,
        recommendation=recommend(measured, findings, path, thresholds),
        error=error,
    )


def _token_diagnosis(
    model: str | None, chat_template: str | None, max_length: int | None, thresholds: Thresholds
) -> TokenDiagnosis | None:
    if model is None and chat_template is not None:
        raise UsageError("needs a tokenizer to render for", where="--chat-template", fix="name a model with --model")
    if model is None and max_length is None:
        return None
    renderer = None if model is None else Renderer.load(resolve_model(model), chat_template)
    return TokenDiagnosis(renderer, max_length, thresholds)

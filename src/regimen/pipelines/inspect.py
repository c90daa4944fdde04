"""Rollout files to what is in them, what is wrong with them and what to do next.

In: rollout files. Out: an `Inspection`. One pass over the rows, one row in memory at a time.
Refuses what the reader refuses. Too many bad rows do not hide the rest: the inspection carries the error.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from regimen.diagnosis.checks import Diagnosis
from regimen.diagnosis.findings import ORDER, Finding
from regimen.diagnosis.recommend import Recommendation, quoted_paths, recommend
from regimen.diagnosis.thresholds import DEFAULT_THRESHOLDS, Thresholds
from regimen.errors import RolloutError
from regimen.rollouts.reader import Paths, ReadReport, RolloutReader
from regimen.rollouts.statistics import Statistics, StatisticsCollector


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
) -> Inspection:
    """Read, measure, check and advise; raises when no row could be read."""
    statistics, diagnosis = StatisticsCollector(), Diagnosis(thresholds)
    error = None
    with RolloutReader(paths, quarantine=quarantine, tasks=tasks, max_bad=max_bad, overwrite=overwrite) as reader:
        try:
            for rollout in reader:
                statistics.add(rollout)
                diagnosis.add(rollout)
        except RolloutError as problem:
            if not (reader.report.good and reader.report.bad):
                raise
            error = str(problem)
    measured = statistics.finish()
    findings = [*_bad_rows(reader.report), *diagnosis.finish(measured, sum(reader.report.failures.values()))]
    findings.sort(key=lambda found: ORDER.index(found.severity))
    path = quoted_paths([str(path) for path in reader.paths])
    return Inspection(
        read=reader.report,
        statistics=measured,
        findings=findings,
        recommendation=recommend(measured, findings, path, thresholds),
        error=error,
    )


def _bad_rows(report: ReadReport) -> list[Finding]:
    if not report.bad:
        return []
    kept = f"they are in {report.quarantine}" if report.quarantine else "keep them with --quarantine FILE"
    return [
        Finding(
            code="bad_rows",
            severity="warning",
            count=report.bad,
            message=f"{report.bad} of {report.rows} rows could not be read: {next(iter(report.reasons))}",
            example=report.first_bad,
            fix=f"mend the writer or the rows; {kept}",
        )
    ]

"""Problems that the reader met: rows that could not be read, by what stopped them.

In: a `ReadReport`. Out: `Finding`s.
"""

from __future__ import annotations

from regimen.diagnosis.findings import Finding, finding
from regimen.rollouts.reader import ReadReport

NOT_FINITE = "generation_log_probs holds a value that is not finite"


def reading_findings(report: ReadReport) -> list[Finding]:
    """Rows that were set aside; those with log-probabilities that are no numbers have a code of their own.

    The report keeps only the first different reasons by name, so that their counts may be less than all.
    """
    if not report.bad:
        return []
    by_logprobs = {reason: count for reason, count in report.reasons.items() if NOT_FINITE in reason}
    others = [reason for reason in report.reasons if reason not in by_logprobs]
    num_logprobs = sum(by_logprobs.values())
    first_is_logprobs = next(iter(report.reasons), "") in by_logprobs
    found: list[Finding] = []
    if num_logprobs:
        message = f"{num_logprobs} of {report.rows} rows were left out: a log-probability is NaN or infinite"
        example = report.first_bad if first_is_logprobs else None
        found.append(finding("logprobs_not_finite", num_logprobs, message, example=example))
    if report.bad > num_logprobs:
        kept = f"they are in {report.quarantine}" if report.quarantine else "keep them with --quarantine FILE"
        count = report.bad - num_logprobs
        why = f": {others[0]}" if others else ""
        found.append(
            finding(
                "bad_rows",
                count,
                f"{count} of {report.rows} rows could not be read{why}",
                example=None if first_is_logprobs else report.first_bad,
                fix=f"mend the writer or the rows; {kept}",
            )
        )
    return found

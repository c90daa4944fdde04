"""Batch arithmetic: how the rows of an epoch fall into batches, and whether training ends before all were seen.

In: rows (SFT), pairs (DPO) or tasks (GRPO), the batch, the limits. Out: a `Schedule` and `Finding`s.
"""

from __future__ import annotations

import math

import msgspec

from regimen.diagnosis.findings import Finding, finding


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """`size` units an epoch, `batch` of them a step. `left_over`: in the last, smaller batch, or of no step (GRPO)."""

    unit: str
    size: int
    batch: int
    steps_per_epoch: int
    total_steps: int
    left_over: int
    never_seen: int


def plan_batches(unit: str, size: int, batch: int, max_epochs: int, max_steps: int, *, drops: bool) -> Schedule:
    """The schedule; `drops`: an epoch's incomplete batch is left out instead of being smaller."""
    steps = max(1, size // batch) if drops else math.ceil(size / batch)
    total = min(max_epochs * steps, max_steps)
    return Schedule(
        unit=unit,
        size=size,
        batch=batch,
        steps_per_epoch=steps,
        total_steps=total,
        left_over=size % batch if size > batch else 0,
        never_seen=max(0, size - total * batch) if total < steps else 0,
    )


def batch_findings(schedule: Schedule, *, drops: bool) -> list[Finding]:
    """What is wrong with a schedule."""
    unit, size, batch = schedule.unit, schedule.size, schedule.batch
    if size < batch:
        if drops:
            message = f"a step takes {batch} {unit}, but there are {size}: training would refuse to begin"
            return [finding("batch_exceeds_data", size, message, severity="error")]
        message = f"a batch takes {batch} {unit}, but there are {size}: one smaller step an epoch; NeMo RL makes none"
        return [finding("batch_exceeds_data", size, message)]
    found: list[Finding] = []
    if schedule.left_over:
        fate = "sit out each epoch (others each time)" if drops else "make a smaller last batch; NeMo RL drops them"
        message = f"{size} {unit} in batches of {batch}: {schedule.left_over} {fate}"
        found.append(finding("batch_does_not_divide", schedule.left_over, message))
    if schedule.never_seen:
        message = (
            f"training ends after {schedule.total_steps} of the {schedule.steps_per_epoch} steps of the first epoch: "
            f"{schedule.never_seen} {unit} are never seen"
        )
        found.append(finding("rows_never_seen", schedule.never_seen, message))
    return found

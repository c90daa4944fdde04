"""Batch arithmetic by hand."""

import pytest

from regimen.diagnosis.batches import batch_findings, plan_batches


@pytest.mark.parametrize(
    ("size", "batch", "epochs", "steps", "drops", "expected"),
    [
        (120, 8, 1, 60, False, (15, 15, 0, 0)),
        (120, 8, 3, 60, False, (15, 45, 0, 0)),
        (120, 8, 1, 10, False, (15, 10, 0, 40)),
        (121, 8, 1, 60, False, (16, 16, 1, 0)),
        (121, 8, 2, 60, True, (15, 30, 1, 0)),
        (5, 8, 1, 60, False, (1, 1, 0, 0)),
    ],
)
def test_schedules(size, batch, epochs, steps, drops, expected):
    plan = plan_batches("rows", size, batch, epochs, steps, drops=drops)
    assert (plan.steps_per_epoch, plan.total_steps, plan.left_over, plan.never_seen) == expected


def test_findings_say_how_many():
    def found(size, batch, steps=60, drops=False):
        plan = plan_batches("tasks", size, batch, 1, steps, drops=drops)
        return [(f.code, f.severity, f.count) for f in batch_findings(plan, drops=drops)]

    assert found(120, 8) == []
    assert found(5, 8) == [("batch_exceeds_data", "warning", 5)]
    assert found(5, 8, drops=True) == [("batch_exceeds_data", "error", 5)]
    assert found(121, 8, steps=3) == [("batch_does_not_divide", "note", 1), ("rows_never_seen", "warning", 97)]

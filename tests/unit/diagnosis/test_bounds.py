"""What the collectors hold in memory for each row."""

import tracemalloc

import msgspec
import pytest

from regimen.diagnosis.checks import Diagnosis
from regimen.rollouts.contents import contents_of
from regimen.rollouts.records import Source, rollout_from_row
from regimen.rollouts.statistics import StatisticsCollector

REPEATS = 8
# Nine columns of 8 bytes or fewer, and what growing lists keep in reserve; sorting at the end holds a few more.
BYTES_PER_ROW, BYTES_AT_THE_END = 80, 160


@pytest.mark.parametrize("num_rows", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_a_row_costs_tens_of_bytes(num_rows):
    row = {
        "responses_create_params": {"input": "q"},
        "output": [{"role": "assistant", "content": "a"}],
        "reward": 1.0,
        "accuracy": 0.5,
        "expected_answer": "xyz",
        "agent_ref": {"name": "e"},
    }
    template = rollout_from_row(row, Source("r.jsonl", 1))
    statistics, diagnosis = StatisticsCollector(), Diagnosis()
    contents = contents_of(template.output)
    tracemalloc.start()
    try:
        for number in range(num_rows):
            task, repeat = divmod(number, REPEATS)
            rollout = msgspec.structs.replace(
                template,
                source=Source("r.jsonl", number + 1),
                task_id=f"e/{task}",
                task_index=task,
                rollout_index=repeat,
                reward=float(repeat % 2),
            )
            statistics.add(rollout, contents)
            diagnosis.add(rollout, contents)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        measured = statistics.finish()
        findings = diagnosis.finish(measured)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (measured.scored, measured.groups.num_tasks, measured.groups.num_varied) == (
        num_rows,
        num_rows // REPEATS,
        num_rows // REPEATS,
    )
    assert {found.code for found in findings} == {"repeated_answers", "same_answer_everywhere"}
    assert held < BYTES_PER_ROW * num_rows
    assert peak < BYTES_AT_THE_END * num_rows

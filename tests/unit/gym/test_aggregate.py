from __future__ import annotations

from typing import Any

import pytest

from regimen.gym.aggregate import aggregate_metrics


def row(task: int, reward: float, tokens: int) -> dict[str, Any]:
    usage = {"input_tokens": tokens, "output_tokens": 2, "total_tokens": tokens + 2}
    return {
        "responses_create_params": {"input": "x"},
        "response": {"output": [], "usage": usage},
        "reward": reward,
        "tool_used": reward > 0,
        "_ng_task_index": task,
        "_ng_rollout_index": 0,
    }


def test_figures_by_hand():
    rows = [row(0, 1, 10), row(0, 0, 20), row(1, 0, 30), row(1, 0, 40)]
    (entry,) = aggregate_metrics(rows, "e", num_failures=3)
    metrics = entry["agent_metrics"]
    assert metrics["mean/reward"] == 0.25
    assert metrics["std/reward"] == 0.5  # variance (0.75² + 3 · 0.25²) / 3 = 0.25
    assert (metrics["min/input_tokens"], metrics["median/input_tokens"], metrics["max/input_tokens"]) == (10, 25, 40)
    assert metrics["mean/tool_used"] == 0.25
    assert (metrics["pass@1/reward"], metrics["pass@2/reward"]) == (25.0, 50.0)
    assert (metrics["num_repeats"], metrics["num_rollouts"], metrics["num_failures"]) == (2, 4, 3)
    assert entry["key_metrics"] == {"mean/reward": 0.25, "pass@1/reward": 25.0, "pass@2/reward": 50.0}
    assert [group["mean/reward"] for group in entry["group_level_metrics"]] == [0.5, 0.0]


def test_no_rows():
    (entry,) = aggregate_metrics([], "e", num_failures=1)
    assert entry["agent_metrics"] == {"num_repeats": 0, "num_rollouts": 0, "num_failures": 1}


def test_pass_at_k_stops_at_the_smallest_group():
    (entry,) = aggregate_metrics([row(0, 1, 1), row(0, 1, 1), row(1, 1, 1)], "e")
    assert "pass@2/reward" not in entry["agent_metrics"]
    assert entry["agent_metrics"]["pass@1/reward"] == pytest.approx(100.0)

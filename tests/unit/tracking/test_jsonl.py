import math

import pytest

from regimen.errors import RunError, UsageError
from regimen.tracking.jsonl import JsonLinesTracker, read_metrics


def test_each_log_is_one_line_on_disk_before_close(tmp_path):
    tracker = JsonLinesTracker(tmp_path)
    tracker.log(1, {"loss": 0.5, "reward": 1}, "train")
    tracker.log(1, {"reward": 0.25}, "validation")
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step":1,"train/loss":0.5,"train/reward":1.0}\n{"step":1,"validation/reward":0.25}\n'
    )
    tracker.close()
    tracker.close()


def test_values_that_are_not_finite_are_null(tmp_path):
    tracker = JsonLinesTracker(tmp_path)
    tracker.log(0, {"loss": math.nan, "norm": math.inf})
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": None, "norm": None}]


def test_resuming_keeps_each_step_once(tmp_path):
    first = JsonLinesTracker(tmp_path)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)}, "train")
    first.close()
    second = JsonLinesTracker(tmp_path, resume_step=3)
    second.log(3, {"loss": 30.0}, "train")
    second.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resuming_drops_a_line_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,"loss":1.0}\n{"step":2,"lo')
    tracker = JsonLinesTracker(tmp_path, resume_step=2)
    tracker.log(2, {"loss": 2.0})
    tracker.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_resuming_without_a_file_starts_one(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "run", resume_step=5)
    tracker.log(5, {"loss": 1.0})
    tracker.close()
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1


def test_a_fresh_run_refuses_an_old_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step":1}\n')
    with pytest.raises(UsageError, match="already holds the metrics"):
        JsonLinesTracker(tmp_path)


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss":1.0}', '{"step":"1"}'])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step":1}}\n{line}\n{{"step":3}}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match="there is no metrics file"):
        read_metrics(tmp_path / "metrics.jsonl")

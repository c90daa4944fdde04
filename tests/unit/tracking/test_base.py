import pytest

from regimen import registry
from regimen.errors import ConfigError
from regimen.tracking.base import TrackerGroup, full_name, open_trackers
from regimen.tracking.jsonl import JsonLinesTracker, read_metrics


class Recorder:
    def __init__(self, failure=None):
        self.logged = []
        self.is_closed = False
        self.failure = failure

    def log(self, step, metrics, prefix=""):
        self.logged.append((step, dict(metrics), prefix))

    def close(self):
        self.is_closed = True
        if self.failure:
            raise self.failure


def test_a_group_hands_everything_to_everyone(tmp_path):
    recorder = Recorder()
    group = TrackerGroup([recorder, JsonLinesTracker(tmp_path)])
    group.log(4, {"loss": 1.5}, "train")
    group.close()
    assert recorder.logged == [(4, {"loss": 1.5}, "train")]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "train/loss": 1.5}]


def test_a_group_closes_all_and_then_says_what_failed():
    first, second = Recorder(OSError("disk full")), Recorder()
    with pytest.raises(OSError, match="disk full"):
        TrackerGroup([first, second]).close()
    assert second.is_closed


def test_names():
    assert full_name("train", "loss") == "train/loss"
    assert full_name("", "loss") == "loss"


def test_trackers_are_opened_by_name_and_metrics_are_always_kept(tmp_path, monkeypatch):
    table = {"jsonl": "regimen.tracking.jsonl:JsonLinesTracker"}
    monkeypatch.setitem(registry.PARTS, "tracker", table)
    group = open_trackers(tmp_path, [])
    group.log(1, {"loss": 1.0})
    group.close()
    resumed = open_trackers(tmp_path, ["jsonl"], resume_step=1)
    assert len(resumed.trackers) == 1
    resumed.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    with pytest.raises(ConfigError, match="unknown tracker 'wandbb'"):
        open_trackers(tmp_path, ["wandbb"], resume_step=1)

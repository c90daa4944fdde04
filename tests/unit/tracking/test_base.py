import sys

import pytest

from regimen import registry
from regimen.errors import ConfigError, UsageError
from regimen.tracking.base import Sample, TrackerGroup, full_name, open_trackers
from regimen.tracking.jsonl import JsonLinesTracker, read_metrics


class Recorder:
    def __init__(self, failure=None):
        self.logged = []
        self.is_closed = False
        self.failure = failure

    def log(self, step, metrics, prefix=""):
        self.logged.append((step, dict(metrics), prefix))

    def log_config(self, config):
        self.logged.append(dict(config))

    def log_samples(self, step, samples):
        self.logged.append((step, list(samples)))

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


def test_configuration_and_samples_go_to_everyone_and_samples_to_a_file(tmp_path):
    recorder = Recorder()
    group = TrackerGroup([recorder, JsonLinesTracker(tmp_path)])
    sample = Sample(prompt="What?", answer="That.", reward=0.5)
    group.log_config({"a": 1})
    group.log_samples(3, [sample])
    group.close()
    assert recorder.logged == [{"a": 1}, (3, [sample])]
    assert read_metrics(tmp_path / "samples.jsonl") == [
        {"step": 3, "prompt": "What?", "answer": "That.", "reward": 0.5}
    ]
    JsonLinesTracker(tmp_path, resume_step=3).close()
    assert read_metrics(tmp_path / "samples.jsonl") == []


def test_a_server_that_is_lost_ends_no_run_and_a_disk_does(tmp_path, capsys):
    class Lost(Recorder):
        def log(self, step, metrics, prefix=""):
            raise ConnectionError("no route to host\nand more")

    remote, other = Lost(), Recorder()
    remote.is_remote = True
    group = TrackerGroup([remote, other])
    for step in (1, 2):
        group.log(step, {"loss": 1.0})
    assert len(other.logged) == 2
    assert capsys.readouterr().err == (
        "note: Lost failed (no route to host) and gets no more metrics; metrics.jsonl has all\n"
    )
    with pytest.raises(ConnectionError):
        TrackerGroup([Lost()]).log(1, {})
    late = Recorder(ConnectionError("gone"))
    late.is_remote = True
    TrackerGroup([late]).close()
    assert "Recorder failed (gone)" in capsys.readouterr().err


def test_settings_go_to_the_tracker_they_name(tmp_path, monkeypatch):
    made = []

    class Remote(Recorder):
        def __init__(self, folder, *, resume_step=None, project=None):
            super().__init__()
            made.append((folder, resume_step, project))

    monkeypatch.setitem(registry.PARTS["tracker"], "remote", "somewhere:Remote")
    real = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda kind, name: Remote if name == "remote" else real(kind, name))
    open_trackers(tmp_path, ["remote"], settings={"remote": {"project": "p"}, "absent": {"x": 1}}).close()
    assert made == [(tmp_path, None, "p")]


@pytest.mark.parametrize("name, module", [("wandb", "wandb"), ("mlflow", "mlflow.exceptions")])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'regimen-rl\[{name}\]'"):
        open_trackers(tmp_path, [name])


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

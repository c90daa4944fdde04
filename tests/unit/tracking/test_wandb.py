"""Against the real package, offline: what is written is read back from the run's own file."""

import json
import struct
import time

import pytest

pytest.importorskip("wandb")

from regimen.tracking.base import Sample
from regimen.tracking.wandb import WandbTracker


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def payloads(data):
    """The records of a run's file: LevelDB's log format, in blocks of 32 KiB, behind a head of 7 bytes."""
    place, parts = 7, []
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


def records(folder):
    """What a run's file holds: history rows, configuration, and all bytes.

    W&B closes the file in a process of its own after `finish` has returned, so it is read until its end is there.
    """
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    give_up = time.monotonic() + 60
    while True:
        raw = path.read_bytes()
        history, config, ended = [], {}, False
        for data in payloads(raw):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            ended |= record.HasField("exit")
            if record.HasField("history"):
                items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                history.append(items)
            for update in (record.config, record.run.config):
                config |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in update.update}
        if ended:
            return history, config, raw
        assert time.monotonic() < give_up, f"{path} ({len(raw)} bytes) has no end"
        time.sleep(0.05)


def test_metrics_configuration_and_samples_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["regimen", "env.search.api_key=top-secret-1"])
    tracker = WandbTracker(tmp_path, project="p", name="n")
    tracker.log_config({"policy": {"model_name": "tiny"}, "env": {"search": {"api_key": "top-secret-1"}}})
    for step in (1, 2):
        tracker.log(step, {"loss": 1 / step}, "train")
        tracker.log(step, {"total_step_time": 3.0}, "timing/train")
    tracker.log_samples(2, [Sample(prompt="What?", answer="That.", reward=1.0)])
    tracker.close()
    history, config, raw = records(tmp_path)
    assert [(row["_step"], row["train/loss"], row["timing/train/total_step_time"]) for row in history] == [
        (1, 1.0, 3.0),
        (2, 0.5, 3.0),
    ]
    assert history[1]["validation/samples/_type"] == "table-file"
    assert config["policy"] == {"model_name": "tiny"}
    assert b"top-secret-1" not in raw
    [table] = tmp_path.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[2, "What?", "That.", 1.0]]
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"top-secret-1" in text for text in texts)


def test_a_resumed_run_keeps_its_id(tmp_path):
    for resume_step in (None, 2):
        tracker = WandbTracker(tmp_path, resume_step=resume_step, project="p")
        tracker.log(resume_step or 1, {"loss": 1.0})
        tracker.close()
    run_id = (tmp_path / "wandb.id").read_text().strip()
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{run_id}*"))) == 2
    WandbTracker(tmp_path, project="p").close()  # a fresh run is another
    assert (tmp_path / "wandb.id").read_text().strip() != run_id

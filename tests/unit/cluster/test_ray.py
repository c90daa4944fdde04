"""Processes in a Ray cluster of this machine: whole runs, what they say, and what ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs
from training_processes import finish, start, wait_for_a_step, written

from regimen.cluster.ray import Layout, Place
from regimen.config.load import load_train_config
from regimen.errors import UsageError
from regimen.pipelines.launch import processes_to_start, starts_on_ray
from regimen.pipelines.run import checkpoints
from regimen.pipelines.train import train
from regimen.tracking.jsonl import read_metrics

ON_RAY = ["policy.dtensor_cfg.enabled=true", "cluster.num_processes=2", "cluster.launcher=ray"]
QUICKLY = {"RAY_worker_niceness": "0"}  # a busy machine starves what is nice


def test_processes_of_a_machine() -> None:
    assert Layout(num_nodes=2, gpus_per_node=8).per_node(has_gpus=True) == 8
    assert Layout(num_nodes=2, gpus_per_node=8).per_node(has_gpus=False) == 1
    assert Layout(num_nodes=2, gpus_per_node=8, num_processes=6).per_node(has_gpus=True) == 3
    with pytest.raises(UsageError, match=r"cluster.num_processes: is 3, but there are 2 machines"):
        Layout(num_nodes=2, num_processes=3).per_node(has_gpus=False)


@pytest.mark.parametrize(
    ("overrides", "address", "expected"),
    [
        ([], "10.0.0.1:6379", True),
        ([], "", False),
        (["cluster.launcher=ray"], "", True),
        (["cluster.launcher=local"], "10.0.0.1:6379", False),
        (["policy.dtensor_cfg.enabled=false"], "10.0.0.1:6379", False),
    ],
)
def test_when_a_cluster_gets_the_processes(
    overrides: list[str], address: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    data = ["data.train.dataset_name=openai_format", "data.train.data_path=t"]
    settings = ["sft.val_period=0", "sft.val_at_start=false", "policy.dtensor_cfg.enabled=true"]
    config = load_train_config("sft", [*data, *settings, *overrides])
    assert starts_on_ray(config) is expected
    monkeypatch.setenv("WORLD_SIZE", "2")  # one of the processes that were started
    assert not starts_on_ray(config)
    assert processes_to_start(config) == 1


def test_a_place_gives_what_its_process_says_and_how_it_ended(tmp_path: Path) -> None:
    program = "import os, sys; print(os.environ['RANK'], os.environ['LACKED'], os.getcwd()); sys.exit(3)"
    for listened in (True, False):
        place = Place(listened)
        place.start([sys.executable, "-c", program], {"RANK": "1"}, {"RANK": "9", "LACKED": "x"}, str(tmp_path))
        code, said = None, list[tuple[str, bytes]]()
        while code is None:
            code, more = place.poll()
            said += more
        assert code == 3
        assert {stream for stream, _ in said} == {"stdout"}
        assert b"".join(part for _, part in said) == f"1 x {tmp_path}\n".encode()


def test_a_place_hands_signals_on(tmp_path: Path) -> None:
    place = Place(True)
    place.start([sys.executable, "-c", "import time; time.sleep(60)"], {}, {}, str(tmp_path))
    place.send(signal.SIGTERM)
    while (code := place.poll()[0]) is None:
        time.sleep(0.05)
    assert code == -signal.SIGTERM
    place.send(signal.SIGTERM)  # nobody is there any more


def start_on_ray(config: str, *words: str) -> subprocess.Popen[str]:
    return start(config, *ON_RAY, *words, **QUICKLY)


@pytest.mark.slow
def test_two_processes_in_a_cluster_train_as_one(tiny_folder: Path, tmp_path: Path) -> None:
    path = written("sft", tiny_folder, tmp_path, "ray", max_num_steps=2)
    code, stdout, stderr = finish(start_on_ray(path))
    assert code == 0, stderr
    assert stdout.count("done: 2 steps") == 1
    one = train(load_train_config(path, [f"checkpointing.checkpoint_dir={tmp_path / 'one'}"]))
    assert tiny_runs.column(tmp_path / "ray", "train/loss") == pytest.approx(one.losses, rel=1e-5)


@pytest.mark.slow
def test_an_error_and_a_signal_end_all(tiny_folder: Path, tmp_path: Path) -> None:
    section = {"max_num_epochs": 3000, "max_num_steps": 5000, "val_period": 0, "val_at_end": False}
    path = written("sft", tiny_folder, tmp_path, "ray", **section)
    code, _, stderr = finish(start_on_ray(path, "data.train.data_path=/nowhere.jsonl"))
    assert (code, stderr.count("there is no such file")) == (2, 1), stderr
    assert "Traceback" not in stderr
    process = start_on_ray(path, "checkpointing.save_period=10000")
    wait_for_a_step(tmp_path / "ray")
    process.send_signal(signal.SIGTERM)
    code, _, stderr = finish(process)
    assert code == 130, stderr
    [checkpoint] = checkpoints(tmp_path / "ray")
    steps = [row["step"] for row in read_metrics(tmp_path / "ray" / "metrics.jsonl") if "train/loss" in row]
    assert checkpoint.name == f"step_{steps[-1]}"

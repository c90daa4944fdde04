"""Starting processes and what they share; whole runs of several are in `tests/end_to_end`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from regimen.config.load import load_train_config
from regimen.config.schema import TrainConfig
from regimen.errors import GymError, UsageError
from regimen.generation.base import Sampling
from regimen.gym.collect import Collection
from regimen.gym.environment import Task
from regimen.pipelines import launch as launching
from regimen.pipelines.launch import launch, processes_to_start
from regimen.pipelines.nemo_gym import WithoutGym
from regimen.pipelines.processes import joined, pooled


def config(*overrides: str) -> TrainConfig:
    data = ["data.train.dataset_name=openai_format", "data.train.data_path=t"]
    return load_train_config("sft", [*data, "sft.val_period=0", "sft.val_at_start=false", *overrides])


ON = "policy.dtensor_cfg.enabled=true"


@pytest.mark.parametrize(
    ("overrides", "num_gpus", "expected"),
    [
        ([], 8, 1),
        ([ON], 0, 1),
        ([ON, "cluster.gpus_per_node=8"], 0, 1),  # a processor is no GPU
        ([ON, "cluster.gpus_per_node=8"], 8, 8),
        ([ON, "cluster.num_processes=3"], 0, 3),
        ([ON, "cluster.num_processes=2", "cluster.gpus_per_node=8"], 8, 2),
    ],
)
def test_how_many_processes(
    overrides: list[str], num_gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launching, "_num_gpus", lambda: num_gpus)
    assert processes_to_start(config(*overrides)) == expected


def test_torchruns_processes_start_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_start(config(ON, "cluster.num_processes=4")) == 1


def test_more_than_one_machine_can_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launching, "_num_gpus", lambda: 2)
    with pytest.raises(UsageError, match=r"4 processes on a machine with 2 GPUs; to fix: set cluster.gpus_per_node=2"):
        processes_to_start(config(ON, "cluster.gpus_per_node=4"))
    with pytest.raises(UsageError, match="torchrun"):
        processes_to_start(config(ON, "cluster.num_nodes=2"))


def test_one_of_many_with_a_configuration_for_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"policy\.dtensor_cfg\.enabled: this is one of 2 processes"), joined(config()):
        pass


class SecondProcess:
    """`Ranks` of a process whose first one is heard to play twice before it has episodes to exchange."""

    size, is_first = 2, False

    def __init__(self, episodes: Collection) -> None:
        self.heard: list[Any] = ["playing", "playing", None, msgspec.to_builtins(episodes)]

    def gather(self, value: Any) -> list[Any]:
        return [self.heard.pop(0), value]


def test_a_process_that_waits_for_a_gyms_episodes_hears_that_they_are_played() -> None:
    row = {"_ng_task_index": 0, "_ng_rollout_index": 0, "reward": 1.0}
    ranks: Any = SecondProcess(Collection(rows=[row], failures=[]))
    player = WithoutGym(Sampling(), 1, ranks)
    heard: list[None] = []
    player.on_episode = lambda: heard.append(None)
    assert player.play([Task(0, {})], 1, 0, 0, None).rows == [row]
    assert len(heard) == 2
    assert ranks.heard == []


def processes_of(*programs: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", program]) for program in programs]


def test_the_code_is_that_of_the_first_to_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "GRACE_SECONDS", 0.5)
    assert launching._wait(processes_of("pass", "pass")) == 0
    assert launching._wait(processes_of("pass", "import sys; sys.exit(130)")) == 130
    forever = "import time; time.sleep(60)"
    began = time.monotonic()
    hanging = processes_of(forever, "import sys; sys.exit(2)")
    assert launching._wait(hanging) == 2
    assert time.monotonic() - began < 20
    bystander = "import sys; sys.exit(3)"
    late = processes_of(bystander, "import sys, time; time.sleep(0.3); sys.exit(2)")
    assert launching._wait(late) == 2  # the one that ended first did so for the other's sake
    assert launching._wait(processes_of(bystander, "pass")) == 1
    killed = processes_of("import os; os.kill(os.getpid(), 9)", "pass")
    assert launching._wait(killed) == 137
    assert "error: process 0 was ended by signal 9" in capsys.readouterr().err
    for process in hanging:
        process.kill()
        process.wait()


def test_a_signal_is_handed_on_to_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys, time; "
        f"mark = pathlib.Path({str(tmp_path)!r}); "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); "
        "(mark / os.environ['RANK']).write_text(os.environ['WORLD_SIZE']); time.sleep(60)"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, env: popen([sys.executable, "-c", program], env=env))

    def stop() -> None:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert launch(["train"], 2) == 130
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2", "1": "2"}


class TwoRanks:
    """The first of two processes, and what the other one played."""

    is_first = True

    def __init__(self, other: dict[str, Any]) -> None:
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def row(task: int, repeat: int, **more: Any) -> dict[str, Any]:
    asked, said = {"input": [{"role": "user", "content": "q"}]}, {"output": []}
    place = {"_ng_task_index": task, "_ng_rollout_index": repeat}
    return {**place, "reward": 1.0, "responses_create_params": asked, "response": said, **more}


def failure(task: int) -> dict[str, Any]:
    return row(task, 0, _ng_failure_class="timed_out", _ng_failure_type="T", _ng_failure_message="late")


TASKS = [Task(index=index, row={"responses_create_params": {"input": []}}) for index in (3, 1)]


def test_the_episodes_of_all_processes_are_one_collection(tmp_path: Path) -> None:
    other = {"rows": [row(1, 0)], "failures": [failure(1)], "num_resumed": 0, "seconds": 5.0}
    mine = Collection(rows=[row(3, 0), row(3, 1)], failures=[], seconds=2.0)
    output = tmp_path / "step_1.jsonl"
    found = pooled(mine, TwoRanks(other), TASKS, 2, "letters", output)  # type: ignore
    places = [(entry["_ng_task_index"], entry["_ng_rollout_index"]) for entry in found.rows]
    assert places == [(1, 0), (3, 0), (3, 1)]
    assert (len(found.failures), found.seconds) == (1, 5.0)
    lines = {path.name: len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl")}
    assert lines == {"step_1.jsonl": 3, "step_1_failures.jsonl": 1, "step_1_materialized_inputs.jsonl": 4}


def test_too_many_failures_are_judged_over_all_processes() -> None:
    other = {"rows": [], "failures": [failure(1)], "num_resumed": 0, "seconds": 0.0}
    found = pooled(Collection(rows=[row(3, 0)], failures=[]), TwoRanks(other), TASKS, 1, "letters", None)  # type: ignore
    assert found.num_episodes == 2  # the other one's share failed, not all
    with pytest.raises(GymError, match="2 of 2 episodes failed"):
        pooled(Collection(rows=[], failures=[failure(3)]), TwoRanks(other), TASKS, 1, "letters", None)  # type: ignore

"""Runs killed again and again, at random moments and while a checkpoint is written, end as if they were not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs

# Imports once; then each line of input is a run in a process of its own, whose id and exit code are answered.
SERVER = """
import json, os, sys, traceback
import torch
import regimen.generation.transformers
from regimen.config.load import load_train_config
from regimen.pipelines.train import train

torch.set_num_threads(1)
for line in sys.stdin:
    config, resume = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            train(load_train_config(config), resume=resume)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Starts runs, and kills them when asked."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", SERVER]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ask, self.answer = self.process.stdin, self.process.stdout

    def start(self, config: Path, run: Path) -> int:
        """The id of a process that begins or continues `run`."""
        self.ask.write(json.dumps([str(config), (run / "config.yaml").exists()]) + "\n")
        self.ask.flush()
        return int(self.answer.readline())

    def code(self) -> int:
        return int(self.answer.readline())

    def finish(self, config: Path, run: Path) -> None:
        self.start(config, run)
        assert self.code() == 0


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    server = Server()
    yield server
    server.ask.close()
    server.process.wait(timeout=60)


def configuration(
    algorithm: str, model: Path, home: Path, name: str, num_steps: int, is_async: bool, with_adapters: bool
) -> Path:
    tree: dict[str, Any] = {
        "defaults": f"quickstart/{algorithm}",
        "policy": {
            "model_name": str(model),
            "max_total_sequence_length": 1500,
            "optimizer": {"kwargs": {"lr": 1e-3}},
            "dtensor_cfg": {"lora_cfg": {"enabled": with_adapters}},
        },
        algorithm: {"max_num_steps": num_steps, "max_num_epochs": num_steps, "val_period": 3, "val_at_start": True},
        "checkpointing": {
            "checkpoint_dir": str(home / name),
            "save_period": 2,
            "save_optimizer": True,
            "keep_top_k": 1,
            "is_async": is_async,
        },
        "logger": {"tensorboard_enabled": False},
    }
    tiny_runs.with_small_data(tree, algorithm, home, 9, 4)
    path = home / f"{name}.json"
    path.write_text(json.dumps(tree))
    return path


def unfinished(run: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or that an earlier kill left half-written: name and inode."""
    return {(path.name, path.stat(follow_symlinks=False).st_ino) for path in run.glob(".step_*.tmp")}


def is_alive(process: int) -> bool:
    """Whether a process runs; the server, its parent, collects it when it ends."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def kill_sometime(server: Server, process: int, run: Path, moment: random.Random, *, in_a_write: bool) -> bool:
    """Kill when a new half-written checkpoint appears, or some time after the run logged a few more lines.

    Returns whether half a checkpoint was left.
    """
    left, lines = unfinished(run) if run.exists() else set(), moment.randrange(0, 12)
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    deadline = time.monotonic() + 60
    while is_alive(process) and time.monotonic() < deadline:
        if in_a_write and run.exists() and unfinished(run) - left:
            time.sleep(moment.uniform(0, 0.004))
            break
        grown = metrics.stat().st_size - before if metrics.exists() else 0
        if not in_a_write and grown >= lines * 150:
            time.sleep(moment.uniform(0, 0.1))
            break
        time.sleep(0.0005)
    if is_alive(process):
        os.kill(process, signal.SIGKILL)
    assert server.code() == -signal.SIGKILL, "the run ended before it could be killed"
    return run.exists() and bool(unfinished(run) - left)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def check_killed_runs(
    server: Server,
    model: Path,
    home: Path,
    algorithm: str,
    num_kills: int,
    num_steps: int,
    *,
    with_adapters: bool = False,
) -> None:
    is_async = algorithm == "sft" and num_kills % 2 == 1
    expected = home / "whole"
    server.finish(configuration(algorithm, model, home, "whole", num_steps, False, with_adapters), expected)
    run, moment = home / "killed", random.Random(f"{algorithm} {num_kills}")
    config = configuration(algorithm, model, home, "killed", num_steps, is_async, with_adapters)
    halves = [
        kill_sometime(server, server.start(config, run), run, moment, in_a_write=number % 2 == 0)
        for number in range(num_kills)
    ]
    assert any(halves), "no kill fell into a write"
    server.finish(config, run)
    assert [row["step"] for row in tiny_runs.figures(run) if "train/loss" in row] == list(range(1, num_steps + 1))
    assert tiny_runs.figures(run) == tiny_runs.figures(expected)
    assert contents(run / "model") == contents(expected / "model")
    last = f"step_{num_steps}"
    assert contents(run / last) == contents(expected / last)  # optimiser and random states too
    if algorithm == "grpo":
        assert (run / "samples.jsonl").read_bytes() == (expected / "samples.jsonl").read_bytes()
    assert not [path for path in run.rglob("*") if "tmp" in path.name]


@pytest.mark.parametrize("algorithm, num_kills, num_steps", [("sft", 3, 10), ("grpo", 2, 6)])
def test_a_run_killed_a_few_times(
    algorithm: str, num_kills: int, num_steps: int, server: Server, tiny_folder: Path, tmp_path: Path
) -> None:
    check_killed_runs(server, tiny_folder, tmp_path, algorithm, num_kills, num_steps)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm, num_kills, num_steps", [("sft", 5, 20), ("sft", 4, 20), ("grpo", 3, 10)])
def test_a_killed_run_of_adapters(
    algorithm: str, num_kills: int, num_steps: int, server: Server, tiny_folder: Path, tmp_path: Path
) -> None:
    check_killed_runs(server, tiny_folder, tmp_path, algorithm, num_kills, num_steps, with_adapters=True)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm, num_kills, num_steps", [("sft", 10, 60), ("sft", 11, 60), ("grpo", 10, 40)])
def test_a_run_killed_ten_times(
    algorithm: str, num_kills: int, num_steps: int, server: Server, tiny_folder: Path, tmp_path: Path
) -> None:
    check_killed_runs(server, tiny_folder, tmp_path, algorithm, num_kills, num_steps)

"""The loop with real stages on the tiny model; killed without warning, it resumes to the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import residue
import yaml

from regimen.config.load import load_iterate_config
from regimen.pipelines.iterate import iterate

RESIDUE = f"{residue.__file__}:Residue"
PLAY: dict[str, Any] = {"environment": {"name": RESIDUE}, "num_tasks": 4}


def config_file(folder: Path, model: Path, to: str, overrides: list[str]) -> Path:
    config = {
        "model": str(model),
        "rounds": 2,
        "collect": {**PLAY, "num_repeats": 8, "generation": {"max_new_tokens": 8}},
        "convert": {"to": to},
        "train": {"config": to, "overrides": overrides},
        "evaluate": {**PLAY, "generation": {"max_new_tokens": 8, "temperature": 0.0}},
        "output": str(folder / "loop"),
    }
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def outcome(folder: Path) -> Any:
    """What the loop says, without times and places."""
    record = json.loads((folder / "iterate.json").read_text())
    for done in record["rounds"]:
        del done["seconds"]
    return record["rounds"], record["kept"], record["final"]


SFT = [
    "policy.precision=float32",
    "policy.optimizer.kwargs.lr=0.01",
    "policy.train_global_batch_size=4",
    "sft.val_at_start=false",
    "sft.max_num_epochs=4",
    "checkpointing.metric_name=null",
    "checkpointing.save_period=1",
]


def test_grpo_trains_on_the_converted_tasks(tiny_folder: Path, tmp_path: Path):
    overrides = [
        "policy.precision=float32",
        "policy.generation.max_new_tokens=8",
        "grpo.num_prompts_per_step=2",
        "grpo.num_generations_per_prompt=4",
        "grpo.val_period=0",
        "checkpointing.metric_name=null",
    ]
    path = config_file(tmp_path, tiny_folder, "grpo", overrides)
    result = iterate(load_iterate_config(path, ["rounds=1"]))
    assert (result.rounds[0].num_steps, result.rounds[0].format) == (2, "gym")
    assert sum(result.rounds[0].trained.values()) == 16
    assert result.evaluation is not None


@pytest.mark.slow
def test_a_loop_killed_while_it_trains_resumes_to_the_same_result(tiny_folder: Path, tmp_path: Path):
    path = config_file(tmp_path, tiny_folder, "sft", SFT)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    iterate(load_iterate_config(path, [f"output={whole}"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "regimen.cli.main", "iterate", str(path), f"output={killed}"]
    process = subprocess.Popen(words, env=environment)
    deadline = time.monotonic() + 120
    while not list(killed.glob("round_1/run/step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    state = json.loads((killed / "state.json").read_text())
    assert list(state["rounds"][0]["seconds"]) == ["collect", "convert"]
    iterate(load_iterate_config(path, [f"output={killed}"]), resume=True)
    assert outcome(killed) == outcome(whole)

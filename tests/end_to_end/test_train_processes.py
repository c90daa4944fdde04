"""`regimen train` with two processes: the figures, the episodes and the files of one; resumed, stopped, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs
from training_processes import TIMEOUT, finish, start, wait_for_a_step, written

from regimen.config.load import load_train_config
from regimen.pipelines.run import SHARDS_FOLDER, STATE_FILE, checkpoints
from regimen.pipelines.train import train
from regimen.tracking.jsonl import read_metrics

TWO = ["policy.dtensor_cfg.enabled=true", "cluster.num_processes=2"]


def same_figures(folder: Path, other_folder: Path) -> None:
    rows, expected = tiny_runs.figures(folder), tiny_runs.figures(other_folder)
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        row.pop("train/micro_batches", None)
        other.pop("train/micro_batches", None)
        for name in ("train/computed_tokens", "train/gen_logprob_error_mean", "train/gen_logprob_error_max"):
            row.pop(name, None), other.pop(name, None)
        if row["step"] == 1:  # policy and reference are equal: every margin is 0 but for rounding
            row.pop("train/accuracy", None), other.pop("train/accuracy", None)
        assert row == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "algorithm", ["grpo", pytest.param("sft", marks=pytest.mark.slow), pytest.param("dpo", marks=pytest.mark.slow)]
)
def test_two_processes_run_as_one(algorithm: str, tiny_folder: Path, tmp_path: Path) -> None:
    path = written(algorithm, tiny_folder, tmp_path, "two", max_num_steps=2)
    asynchronous = "checkpointing.is_async=true"  # two of two checkpoints are under way while training goes on
    code, stdout, stderr = finish(start(path, *TWO, *([asynchronous] if algorithm != "sft" else [])))
    assert code == 0, stderr
    assert stdout.count("done: 2 steps") == 1  # one process prints
    one = train(load_train_config(path, [f"checkpointing.checkpoint_dir={tmp_path / 'one'}"]))
    same_figures(tmp_path / "two", one.folder)
    files = {file.relative_to(one.folder) for file in one.folder.rglob("*") if SHARDS_FOLDER not in file.parts}
    assert {
        file.relative_to(tmp_path / "two") for file in (tmp_path / "two").rglob("*") if SHARDS_FOLDER not in file.parts
    } - files == set()
    last = checkpoints(tmp_path / "two")[-1]
    assert len(list((last / SHARDS_FOLDER).glob("*.distcp"))) == 2
    assert [path.name for path in checkpoints(tmp_path / "two") if (path / SHARDS_FOLDER).exists()] == [last.name]
    assert not (tmp_path / "two" / "model" / SHARDS_FOLDER).exists()
    assert not (tmp_path / "two" / "model" / STATE_FILE).exists()
    difference = tiny_runs.weights(tmp_path / "two" / "model") - tiny_runs.weights(one.folder / "model")
    assert difference.abs().max() < 1e-3


@pytest.mark.slow
def test_compiled_layers_in_shards_take_the_same_steps(tiny_folder: Path, tmp_path: Path) -> None:
    path = written("sft", tiny_folder, tmp_path, "two", max_num_steps=3)
    folders = [tmp_path / "two", tmp_path / "plain"]
    for folder, is_compiled in zip(folders, ("true", "false"), strict=True):
        more = [f"checkpointing.checkpoint_dir={folder}", f"logger.log_dir={folder}"]
        compiled = [f"policy.torch_compile={is_compiled}", "policy.activation_checkpointing=true"]
        code, _, stderr = finish(start(path, *TWO, *more, *compiled))
        assert code == 0, stderr
    same_figures(*folders)


@pytest.mark.slow
def test_two_processes_play_ahead_as_one(tiny_folder: Path, tmp_path: Path) -> None:
    path = written("grpo", tiny_folder, tmp_path, "two", max_num_steps=3, async_grpo={"enabled": True})
    code, _, stderr = finish(start(path, *TWO, "checkpointing.is_async=true"))
    assert code == 0, stderr
    one = train(load_train_config(path, [f"checkpointing.checkpoint_dir={tmp_path / 'one'}"]))
    same_figures(tmp_path / "two", one.folder)
    assert tiny_runs.column(tmp_path / "two", "train/trajectory_age") == [0.0, 1.0, 1.0]
    for step in (1, 2, 3):
        name = f"rollouts/step_{step}.jsonl"
        assert _played(tmp_path / "two" / name) == _played(one.folder / name) != []


def _played(rollouts: Path) -> list[tuple[int, int, int]]:
    """Task, repeat and weights of each episode, in order."""
    rows = map(json.loads, rollouts.read_text().splitlines())
    return sorted((row["_ng_task_index"], row["_ng_rollout_index"], row["regimen"]["weight_version"]) for row in rows)


@pytest.mark.slow
def test_the_best_checkpoint_and_the_latest_are_kept(tiny_folder: Path, tmp_path: Path) -> None:
    """Ranked by a loss that only grows, as the learning rate is far too high: the first is the best."""
    path = written("sft", tiny_folder, tmp_path, "two", max_num_steps=3, val_period=1)
    more = ["checkpointing.metric_name=val:loss", "checkpointing.keep_top_k=1", "policy.optimizer.kwargs.lr=1"]
    code, _, stderr = finish(start(path, *TWO, *more))
    assert code == 0, stderr
    losses = tiny_runs.column(tmp_path / "two", "validation/loss")[-3:]
    assert min(losses) == losses[0]
    kept = checkpoints(tmp_path / "two")
    assert [path.name for path in kept] == ["step_1", "step_3"]
    assert [path.name for path in kept if (path / SHARDS_FOLDER).exists()] == ["step_3"]


@pytest.mark.slow
def test_sigterm_stops_all_after_the_same_step(tiny_folder: Path, tmp_path: Path) -> None:
    section = {"max_num_epochs": 3000, "max_num_steps": 5000, "val_period": 0, "val_at_end": False}
    path = written("sft", tiny_folder, tmp_path, "two", **section)
    more = ["checkpointing.save_period=10000"]
    process = start(path, *TWO, *more)
    wait_for_a_step(tmp_path / "two")
    process.send_signal(signal.SIGTERM)
    code, _, stderr = finish(process)
    assert code == 130, stderr
    assert stderr.count("SIGTERM: finishing this step") == 1
    [checkpoint] = checkpoints(tmp_path / "two")
    steps = [row["step"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl") if "train/loss" in row]
    assert checkpoint.name == f"step_{steps[-1]}"


@pytest.mark.slow
def test_an_error_of_all_is_said_once_and_a_lost_process_ends_the_run(tiny_folder: Path, tmp_path: Path) -> None:
    path = written("sft", tiny_folder, tmp_path, "two", max_num_epochs=3000, max_num_steps=5000)
    code, _, stderr = finish(start(path, *TWO, "data.train.data_path=/nowhere.jsonl"))
    assert (code, stderr.count("there is no such file")) == (2, 1)
    assert "Traceback" not in stderr
    process = start(path, *TWO, "checkpointing.save_period=10000")
    wait_for_a_step(tmp_path / "two")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, _, stderr = finish(process)
    assert code == 128 + signal.SIGKILL
    assert "was ended by signal 9" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_torchrun_starts_it_too(tiny_folder: Path, tmp_path: Path) -> None:
    path = written("sft", tiny_folder, tmp_path, "two", max_num_steps=2)
    words = ["--standalone", "--nproc-per-node", "2", "-m", "regimen.cli.main", "train", path, TWO[0]]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: 2 steps") == 1

"""Whole training runs on a tiny random model: SFT, DPO and GRPO, stopped, killed and resumed."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_runs import TOOLS, chat, column, configuration, figures, run, weights, write_rows

from regimen.config.load import load_train_config
from regimen.errors import ConfigError, GenerationError, UsageError
from regimen.pipelines.run import checkpoints
from regimen.tokens.template import Renderer

# Imports once, then a process for each run: [configuration, module, function, call at which it is killed].
KILLED_RUNS = """
import json, os, signal, sys
from importlib import import_module
import regimen.generation.transformers
from regimen.config.load import load_train_config
from regimen.pipelines.train import train

def run(config, module, name, number):
    owner = import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), []

    def deadly(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)
    train(load_train_config(config))

for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            run(*arguments)
        finally:
            os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
STOPPED_RUN = """
import sys, time
from regimen.config.load import load_train_config
from regimen.pipelines.train import train

result = train(load_train_config(sys.argv[1]), progress=lambda *_: time.sleep(0.4))
print(result.stopped, result.num_steps, flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_a_run_and_what_it_leaves(algorithm: str, tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration(algorithm, tiny_folder, tmp_path, tmp_path / "run", max_num_steps=3)
    result = run(tree)
    assert result.num_steps == 3
    assert not result.stopped
    assert len(result.losses) == 3
    assert all(map(math.isfinite, result.losses))
    assert column(result.folder, "train/loss") == pytest.approx(result.losses)
    assert result.model == result.folder / "model"
    assert (weights(result.model) - weights(tiny_folder)).abs().max() > 1e-4
    files = {path.name for path in result.folder.iterdir() if path.is_file()}
    optional = {"ledger.json", "samples.jsonl"}
    assert files - optional == {"config.yaml", "inputs.json", "metrics.jsonl", "versions.json"}
    again = load_train_config(str(result.folder / "config.yaml"))
    assert again.policy.max_total_sequence_length == 1500
    renderer = Renderer.load(result.model)
    assert renderer.prompt_ids(chat(1)["messages"][:1], TOOLS)  # tokenizer and template came along
    if algorithm == "grpo":
        episodes = sum(result.ledger.values())
        assert episodes == 3 * 2 * 3  # every episode of every step in one bucket
        assert result.ledger["trained"] > 0
        assert len((result.folder / "rollouts" / "step_2.jsonl").read_text().splitlines()) == 6
        assert max(column(result.folder, "train/gen_logprob_error_max")) < 1e-4
    else:
        assert result.ledger == {"trained": 8, "validation": 3}
        assert column(result.folder, "train/num_rows") == [3.0, 3.0, 2.0]
        assert len(column(result.folder, "validation/loss")) == 2  # step 2, and the end


def test_every_row_and_token_of_both_files_is_accounted_for(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=1)
    rows = [chat(30), chat(31, "x" * 2000), chat(32)]
    write_rows(tmp_path / "validation.jsonl", rows)
    result = run(tree)
    assert result.ledger == {"trained": 8, "validation": 2, "validation_too_long": 1}
    ledger = json.loads((result.folder / "ledger.json").read_text())
    assert ledger["train"]["rows"] == {"trained": 8}
    assert ledger["validation"]["rows"] == {"trained": 2, "too_long": 1}
    renderer = Renderer.load(tiny_folder)
    for split, kept in {"train": [chat(i) for i in range(10, 18)], "validation": [rows[0], rows[2]]}.items():
        sequences = [s for row in kept for s in renderer.conversation(row["messages"], TOOLS)]
        trained = sum(sequence.num_trained for sequence in sequences)
        masked = sum(len(sequence.ids) for sequence in sequences) - trained
        assert ledger[split]["tokens"] == {"trained": trained, "masked": masked}


def test_a_checkpoint_is_ranked_only_by_a_validation_of_its_own_step(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=3, val_at_end=False)
    tree["checkpointing"] |= {"metric_name": "val:val_loss", "higher_is_better": True, "keep_top_k": 10}
    result = run(tree)  # validates after step 2 alone
    infos = [json.loads((path / "training_info.json").read_text()) for path in checkpoints(result.folder)]
    [loss] = column(result.folder, "validation/loss")
    assert [info["metric"] for info in infos] == [None, loss, None]


def test_a_metric_that_validation_does_not_give_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=2)
    tree["checkpointing"]["metric_name"] = "val:perplexity"
    with pytest.raises(ConfigError, match=r"validation gives no 'perplexity'.*val:loss"):
        run(tree)


def test_sft_learns_the_text_it_is_shown(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "run", max_num_epochs=5, max_num_steps=100)
    tree["policy"]["optimizer"]["kwargs"]["lr"] = 5e-3
    tree["checkpointing"]["save_period"] = 1000
    result = run(tree)
    assert result.losses[-1] < 0.7 * result.losses[0]


def test_dpo_begins_at_the_reference_and_leaves_it(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("dpo", tiny_folder, tmp_path, tmp_path / "run", max_num_epochs=3, max_num_steps=100)
    tree["checkpointing"]["save_period"] = 1000
    result = run(tree)
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are equal
    assert result.losses[-1] < 0.9 * result.losses[0]


def test_grpo_on_the_calculator(tiny_folder: Path, tmp_path: Path) -> None:
    """A random model solves nothing: no group differs, nothing is computed, and that is what the ledger says."""
    tree = configuration("grpo", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=2, max_val_samples=2)
    name = {"dataset_name": "Environment", "env_name": "calculator", "data_path": None}
    tree["data"] = {split: {**name, "split": split} for split in ("train", "validation")}
    tree["policy"]["max_total_sequence_length"] = 3000
    result = run(tree)
    assert result.ledger == {"zero_variance": 12}
    assert result.losses == []
    assert column(result.folder, "train/skipped") == [1.0, 1.0]
    assert torch.equal(weights(result.model or tmp_path), weights(tiny_folder))


def test_text_and_sampled_ids_train_the_same_where_they_agree(tiny_folder: Path, tmp_path: Path) -> None:
    by_text = run(configuration("sft", tiny_folder, tmp_path, tmp_path / "text", max_num_steps=2))
    renderer = Renderer.load(tiny_folder)
    lines = []
    for index in range(10, 18):
        [sequence] = renderer.conversation(chat(index)["messages"], TOOLS)
        lines.append(
            {
                "version": 1,
                "source": {"path": "rollouts.jsonl", "line": index},
                "task_id": str(index),
                "task_index": index,
                "rollout_index": 0,
                "reward": 1.0,
                "tokenizer": renderer.fingerprint,
                "template": renderer.template_fingerprint,
                "num_prompt_messages": 1,
                "sequences": [{"ids": sequence.ids, "spans": sequence.spans, "logprobs": []}],
            }
        )
    write_rows(tmp_path / "train.sidecar.jsonl", lines)
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "ids", max_num_steps=2)
    assert run(tree).losses == by_text.losses


KILLS = [
    ("sft", "regimen.pipelines.saving", "save_state", 3),  # half a checkpoint
    ("dpo", "regimen.policy.local", "LocalPolicy.train_step", 3),
    ("grpo", "regimen.pipelines.scoring", "sequences_of", 15),  # in the third step, its episodes on disk
]


@pytest.fixture(scope="module")
def killed_runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `<algorithm>/killed`, the run that was killed, and its configuration beside it."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = []
    for algorithm, *place in KILLS:
        home = folder / algorithm
        home.mkdir()
        tree = configuration(algorithm, tiny_folder, home, home / "killed", max_num_steps=4)
        (home / "killed.json").write_text(json.dumps(tree))
        arguments.append([str(home / "killed.json"), *place])
    process = start(KILLED_RUNS, json.dumps(arguments))
    stdout, stderr = process.communicate(timeout=120)
    assert stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), stderr
    return folder


@pytest.mark.parametrize("algorithm", [kill[0] for kill in KILLS])
def test_a_killed_run_resumes_to_the_same_end(algorithm: str, killed_runs: Path, tiny_folder: Path) -> None:
    home = killed_runs / algorithm
    expected = run(configuration(algorithm, tiny_folder, home, home / "whole", max_num_steps=4))
    assert checkpoints(home / "killed")[-1].name == "step_2"

    resumed = run(json.loads((home / "killed.json").read_text()), resume=True)
    assert resumed.num_steps == expected.num_steps == 4
    assert resumed.losses == expected.losses[2:]
    assert figures(home / "killed") == figures(home / "whole")
    assert resumed.ledger == expected.ledger
    assert torch.equal(weights(home / "killed" / "model"), weights(home / "whole" / "model"))
    assert not list((home / "killed").glob(".*tmp*"))


def test_sigterm_saves_a_checkpoint_and_leaves(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "run", max_num_epochs=30, max_num_steps=1000)
    tree["checkpointing"]["save_period"] = 10_000
    path = tmp_path / "run.json"
    path.write_text(json.dumps(tree))
    process = start(STOPPED_RUN, str(path))
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and b"train/loss" in metrics.read_bytes()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    stopped, num_steps = stdout.split()
    assert stopped == "True"
    assert [checkpoint.name for checkpoint in checkpoints(tmp_path / "run")] == [f"step_{num_steps}"]
    assert len(column(tmp_path / "run", "train/loss")) == int(num_steps)
    assert "saving a checkpoint" in stderr


def test_a_folder_in_use_and_another_configuration_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=1)
    with pytest.raises(UsageError, match="no run to resume"):
        run(tree, resume=True)
    first = run(tree)
    before = sorted((first.folder / "model").iterdir())
    with pytest.raises(UsageError, match="holds a run"):
        run(tree)
    tree["sft"]["seed"] = 7
    with pytest.raises(UsageError, match=r"changed since the run was begun: sft\.seed \(42 -> 7\)"):
        run(tree, resume=True)
    tree["sft"]["seed"] = 42
    finished = run(tree, resume=True)
    assert (finished.num_steps, finished.losses) == (1, [])
    assert sorted((first.folder / "model").iterdir()) == before
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(chat(99)) + "\n")
    with pytest.raises(UsageError, match=r"changed since the run was begun: data file .*train\.jsonl"):
        run(tree, resume=True)


def test_resuming_a_finished_run_without_training_state_publishes_its_model(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=1)
    tree["checkpointing"]["save_optimizer"] = False
    first = run(tree)
    shutil.rmtree(first.folder / "model")
    finished = run(tree, resume=True)
    assert (finished.num_steps, finished.losses, finished.stopped) == (1, [], False)
    assert (finished.ledger, finished.metrics) == (first.ledger, first.metrics)
    assert (first.folder / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_show_batch_shows_and_leaves_nothing(
    algorithm: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = configuration(algorithm, tiny_folder, tmp_path, tmp_path / "run", max_num_steps=3)
    result = run(tree, show_batch=True)
    shown = capsys.readouterr().out
    assert (result.num_steps, result.model) == (0, None)
    assert "sequence 0" in shown
    assert "micro-batches compute" in shown
    assert not (tmp_path / "run").exists()


def test_a_generator_with_other_weights_stops_the_run(
    tiny: ModuleType, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that sampler and policy agree must be able to fail, before any weight changes."""
    from regimen.generation.transformers import TransformersGeneration

    def other_weights(*_: object, **__: object) -> TransformersGeneration:
        return TransformersGeneration(tiny.tiny_model(seed=5))

    monkeypatch.setattr(TransformersGeneration, "load", other_weights)
    tree = configuration("grpo", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=2)
    with pytest.raises(GenerationError, match="differ from the policy's"):
        run(tree)
    assert checkpoints(tmp_path / "run") == []

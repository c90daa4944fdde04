"""What stops a run with a reason, what a resumed run may change, and runs that are equal bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file
from tiny_runs import figures, run

from regimen.config.load import load_train_config
from regimen.errors import NonFiniteError, RunError, UsageError
from regimen.pipelines import guards
from regimen.pipelines.run import STATE_FILE, checkpoints
from regimen.pipelines.train import train
from regimen.tracking.jsonl import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def configuration(algorithm: str, model: Path, home: Path, name: str = "run", **sections: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "defaults": f"quickstart/{algorithm}",
        "policy": {
            "model_name": str(model),
            "max_total_sequence_length": 1500,
            "optimizer": {"kwargs": {"lr": 1e-3}},
        },
        algorithm: {"max_num_steps": 3, "max_num_epochs": 9, "val_period": 2, "val_at_start": False},
        "checkpointing": {"checkpoint_dir": str(home / name), "save_period": 1, "save_optimizer": True},
        "logger": {"tensorboard_enabled": False},
    }
    tiny_runs.with_small_data(tree, algorithm, home, 6, 3)
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("sft", tiny_folder, tmp_path)
    tree["policy"]["optimizer"]["kwargs"]["lr"] = 1e38  # the first step throws the weights away
    with pytest.raises(NonFiniteError, match=r"failures/step_2: loss nan.*no step was taken"):
        run(tree)
    record = json.loads((tmp_path / "run" / "failures" / "step_2" / "batch.json").read_text())
    texts = [sequence["text"] for batch in record["micro_batches"] for sequence in batch["sequences"]]
    assert len(texts) == 3
    assert all("What is" in text and "It is" in text for text in texts)
    arrays = load_file(tmp_path / "run" / "failures" / "step_2" / "batch.safetensors")
    assert torch.isnan(arrays["0.logprob"]).any()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_1"]


def test_a_batch_that_does_not_balance_stops_the_run(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regimen.pipelines import train as pipeline

    real = pipeline.micro_batches
    monkeypatch.setattr(pipeline, "micro_batches", lambda sequences, *a, **k: real(sequences[1:], *a, **k))
    with pytest.raises(RunError, match="the ledger does not balance: sequences in the micro-batches: 2; expected 3"):
        run(configuration("sft", tiny_folder, tmp_path))
    assert guards.check_balance(2, 2, "x") is None


def test_an_environment_that_hangs_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("grpo", tiny_folder, tmp_path, run={"stage_timeout": 1.5})
    for entry in tree["data"].values():
        entry["env_name"] = entry["env_name"].replace(":Alike", ":Stuck")
    with pytest.raises(RunError, match=r"no progress for 1\.5 s in the stage 'generation'.*run\.stage_timeout"):
        run(tree)
    assert "stage: generation" in (tmp_path / "run" / "failures" / "hang_generation.txt").read_text()


def test_more_steps_continue_a_finished_run_as_if_it_had_been_asked_for_them(tiny_folder: Path, tmp_path: Path) -> None:
    whole = run(configuration("sft", tiny_folder, tmp_path, "whole", sft={"max_num_steps": 5}))
    first = run(configuration("sft", tiny_folder, tmp_path))
    assert first.num_steps == 3
    longer = configuration("sft", tiny_folder, tmp_path, sft={"max_num_steps": 5})
    assert run(longer, resume=True).losses == whole.losses[3:]
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == (
        whole.folder / "model/model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "run" / "changes.jsonl").read_text()) == {
        "step": 3,
        "changed": ["sft.max_num_steps (3 -> 5)"],
    }


def test_more_steps_need_the_training_state(tiny_folder: Path, tmp_path: Path) -> None:
    run(configuration("sft", tiny_folder, tmp_path, checkpointing={"save_optimizer": False}))
    with pytest.raises(UsageError, match="checkpoints hold no training state"):
        run(configuration("sft", tiny_folder, tmp_path, sft={"max_num_steps": 5}), resume=True)


def test_a_changed_model_and_template_are_refused_unless_allowed(tiny: Any, tmp_path: Path) -> None:
    model = tiny.save_tiny_model(tmp_path / "model")
    tree = configuration("sft", model, tmp_path)
    template = tmp_path / "chat.jinja"
    template.write_text((model / "chat_template.jinja").read_text())
    tree["policy"]["tokenizer"] = {"chat_template": str(template)}
    run(tree)
    tree["sft"]["max_num_steps"] = 4
    tiny.save_tiny_model(model, seed=5)
    with pytest.raises(UsageError, match=rf"changed since the run was begun: model {model}; .*--allow-changed"):
        run(tree, resume=True)
    tiny.save_tiny_model(model)
    template.write_text(template.read_text() + " ")
    with pytest.raises(UsageError, match="changed since the run was begun: chat template;"):
        run(tree, resume=True)
    assert run(tree, resume=True, allow_changed=True).num_steps == 4
    assert "chat template" in (tmp_path / "run" / "changes.jsonl").read_text()


def test_checkpoints_written_by_a_thread_are_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    at_once = run(configuration("sft", tiny_folder, tmp_path, "at_once"))
    behind = run(configuration("sft", tiny_folder, tmp_path, "behind", checkpointing={"is_async": True}))
    assert behind.losses == at_once.losses
    for name in (STATE_FILE, "model.safetensors", "training_info.json", "config.json"):
        left, right = (result.folder / "step_3" / name for result in (at_once, behind))
        assert left.read_bytes() == right.read_bytes(), name


@pytest.mark.parametrize("algorithm", ["sft", "grpo"])
def test_two_deterministic_runs_are_equal_bit_for_bit(algorithm: str, tiny_folder: Path, tmp_path: Path) -> None:
    results = []
    for name in ("first", "second"):
        tree = configuration(algorithm, tiny_folder, tmp_path, name, run={"deterministic": True})
        loaded = load_train_config(tree)
        assert any("run.deterministic costs speed" in note for note in loaded.notes)
        results.append(train(loaded))
        torch.rand(3)  # whatever else this process does
    first, second = results
    assert first.losses == second.losses
    assert all(map(math.isfinite, first.losses))
    assert figures(first.folder) == figures(second.folder)
    for name in (STATE_FILE, "model.safetensors"):
        assert (first.folder / "step_3" / name).read_bytes() == (second.folder / "step_3" / name).read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_validation_shows_episodes_and_users_find_their_names(tiny_folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    result = run(
        configuration("grpo", tiny_folder, tmp_path),
        progress=lambda label, done, total, note="": notes.append(f"{label} {done}/{total} {note}"),
    )
    names = {name for row in read_metrics(result.folder / "metrics.jsonl") for name in row}
    assert {
        "train/loss",
        "train/reward",
        "train/grad_norm",
        "train/lr",
        "train/total_num_tokens",
        "validation/reward",
        "validation/accuracy",
        "timing/train/total_step_time",
        "timing/train/generation",
        "timing/train/policy_training",
        "timing/validation/total_validation_time",
        "performance/tokens_per_sec_per_gpu",
        "performance/generation_tokens_per_sec_per_gpu",
        "performance/policy_training_tokens_per_sec_per_gpu",
    } <= names
    samples = read_metrics(result.folder / "samples.jsonl")
    assert [sample["step"] for sample in samples if sample["step"] == 2] == [2] * 4
    rewards = {json.loads(line)["reward"] for line in (result.folder / "rollouts/validation_2.jsonl").open()}
    assert {sample["reward"] for sample in samples if sample["step"] == 2} <= rewards
    assert samples[0]["prompt"] == "[user] Write."
    assert samples[0]["answer"].startswith("[assistant] ")
    assert notes[0] == "train grpo 0/3 playing episodes"
    assert any(note.startswith("train grpo 1/3 training, loss ") and "reward " in note for note in notes)
    assert " tokens/s" in notes[-1]

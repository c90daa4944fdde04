"""`examples/grpo_loop.py` and the pipeline compute the same losses, on padded rows and on forests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import residue

from regimen.config.load import assignment, load_train_config
from regimen.pipelines.train import train
from regimen.tracking.jsonl import read_metrics

EXAMPLE = Path(__file__).parents[2] / "examples" / "grpo_loop.py"
STEPS, TASKS, GROUP = 3, 2, 4


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("grpo_loop_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def pipeline_metrics(model: Path, folder: Path, environment: str) -> list[dict[str, Any]]:
    """`train/loss`, `train/grad_norm` and `train/reward` of each step of the pipeline."""
    values = {
        "policy.model_name": str(model),
        "policy.tokenizer.chat_template": "tools",
        "policy.precision": "float32",
        "policy.scheduler": None,
        "policy.max_total_sequence_length": 1024,
        "policy.optimizer.kwargs": {"lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8},
        "policy.generation.max_new_tokens": 10,
        "policy.generation.temperature": 0.8,
        "data.train.env_name": environment,
        "data.train.dataset_name": "Environment",
        "grpo.num_prompts_per_step": TASKS,
        "grpo.num_generations_per_prompt": GROUP,
        "grpo.max_num_steps": STEPS,
        "grpo.seed": 42,
        "grpo.val_period": 0,
        "loss_fn.reference_policy_kl_penalty": 0.0,
        "checkpointing.checkpoint_dir": str(folder),
        "logger.log_dir": str(folder),
    }
    overrides = [assignment(key, value) for key, value in values.items()]
    config = load_train_config("grpo", overrides)
    train(config)
    return [row for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]


def test_losses_of_the_example_are_those_of_the_pipeline(tiny_folder: Path, tmp_path: Path) -> None:
    environment = f"{residue.__file__}:Residue"
    expected = pipeline_metrics(tiny_folder, tmp_path / "run", environment)
    module = load_example()
    settings = module.Settings(
        str(tiny_folder),
        environment,
        steps=STEPS,
        tasks_per_step=TASKS,
        group_size=GROUP,
        learning_rate=1e-3,
        temperature=0.8,
        max_new_tokens=10,
        seed=42,
        rows_at_once=3,
    )
    found = module.main(settings)
    assert len(found) == STEPS
    assert all(0 < step.reward < 1 for step in found), "every step must have something to learn"
    for name in ("loss", "grad_norm", "reward"):
        ours = [getattr(step, name) for step in found]
        theirs = [row[f"train/{name}"] for row in expected]
        assert ours == pytest.approx(theirs, rel=1e-5), name
    # On policy the value of the loss says little about the weights; the gradient's norm does, and it must change.
    assert len({round(step.grad_norm, 6) for step in found}) == STEPS

"""GRPO on question-and-answer rows: the guides' configuration, and what `regimen convert` says to do next."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from regimen.cli.main import main
from regimen.config.load import load_train_config
from regimen.errors import GymError
from regimen.pipelines.train import train
from regimen.tracking.jsonl import read_metrics

GUIDE = Path(__file__).parents[1] / "fixtures" / "config" / "guide_grpo.yaml"
SMALL = [
    "logger.wandb_enabled=false",
    "policy.precision=float32",
    "policy.max_total_sequence_length=256",
    "policy.generation.max_new_tokens=4",
    "grpo.num_generations_per_prompt=6",
    "logger.tensorboard_enabled=false",
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def question(number: int) -> str:
    return f"Guess number {number}."


@pytest.fixture(scope="module")
def guesser(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that answers 7 or 8, whatever it is asked."""
    folder = tmp_path_factory.mktemp("guesser")
    rows = [{"input": question(n), "output": answer} for n in range(4) for answer in ("7", "8")]
    given = {
        "defaults": "quickstart/sft",
        "policy": {"model_name": str(tiny_folder), "precision": "float32", "train_micro_batch_tokens": 2000,
                   "max_total_sequence_length": 256, "train_global_batch_size": 8,
                   "optimizer": {"kwargs": {"lr": 2e-2}}},
        "data": {"train": {"dataset_name": "ResponseDataset", "data_path": write(folder / "sft.jsonl", rows)},
                 "validation": {"dataset_name": "ResponseDataset", "data_path": str(folder / "sft.jsonl")}},
        "sft": {"max_num_epochs": 30, "max_num_steps": 30, "val_period": 1000},
        "checkpointing": {"checkpoint_dir": str(folder / "run"), "save_period": 1000},
        "logger": {"tensorboard_enabled": False},
    }  # fmt: skip
    result = train(load_train_config(given))
    assert result.losses[-1] < 1.2  # between two answers, each sequence of two tokens
    return str(result.model)


def figures(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.jsonl") if name in row]


def test_the_guides_configuration_trains(guesser: str, tmp_path: Path) -> None:
    rows = [{"input": question(n), "output": 7} for n in range(4)]
    paths = [f"data.train_data_path={write(tmp_path / 'train.jsonl', rows)}",
             f"data.val_data_path={write(tmp_path / 'val.jsonl', rows[:2])}"]  # fmt: skip
    small = ["grpo.num_prompts_per_step=2", "policy.train_global_batch_size=12", "grpo.val_period=1"]
    folder = f"checkpointing.checkpoint_dir={tmp_path / 'run'}"
    config = load_train_config(GUIDE, [*SMALL, *small, *paths, f"policy.model_name={guesser}", folder])
    assert config.env["math"]["math_verify_impl"] == "hf_math_verify"
    result = train(config)
    assert result.num_steps == 2
    assert sum(result.ledger.values()) == 24
    assert result.ledger["trained"] >= 12
    rewards = figures(result.folder, "train/reward")
    assert all(0 < reward < 1 for reward in rewards)
    assert len(figures(result.folder, "validation/reward")) == 2
    episodes = [json.loads(line) for line in (result.folder / "rollouts" / "step_1.jsonl").open()]
    said = {row["extracted_answer"] for row in episodes if row["reward"] == 1}
    assert said == {"7"}
    assert {row["expected_answer"] for row in episodes} == {"7"}


@pytest.mark.parametrize(("answers", "environment"), [(("7", "8"), "math"), (("A", "(B)"), "multiple_choice")])
def test_the_command_that_convert_prints_trains(
    answers: tuple[str, str], environment: str, guesser: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = [rollout(n, k, answers[n % 2], reward=float(k == 0)) for n in range(6) for k in range(2)]
    source, out = write(tmp_path / "rollouts.jsonl", rollouts), tmp_path / "a folder"
    assert main(["convert", source, "--to", "grpo", "--format", "response", "--out", str(out)]) == 0
    [command] = re.findall(r"^next: (.*)$", capsys.readouterr().out, re.MULTILINE)
    words = shlex.split(command)
    assert words[:2] == ["regimen", "train"]
    assert f"data.default.env_name={environment}" in words
    words[words.index("policy.model_name=MODEL")] = f"policy.model_name={guesser}"
    run = tmp_path / "run"
    assert main([*words[1:], *SMALL, f"checkpointing.checkpoint_dir={run}", "grpo.val_period=1"]) == 0
    [step] = figures(run, "train/num_episodes")
    assert step == 30  # 5 tasks; the sixth is kept for validation
    assert figures(run, "train/num_failed") == [0.0]
    assert len(figures(run, "validation/reward")) == 1


def rollout(task: int, repeat: int, answer: str, *, reward: float) -> dict[str, Any]:
    said = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": answer}]}]
    return {
        "responses_create_params": {"input": [{"role": "user", "content": question(task)}]},
        "response": {"output": said},
        "reward": reward,
        "expected_answer": answer,
        "_ng_task_index": task,
        "_ng_rollout_index": repeat,
    }


def test_answers_that_nobody_can_judge_by_fail_and_are_no_zeros(guesser: str, tmp_path: Path) -> None:
    rows = [{"input": question(n), "output": r"\foo"} for n in range(2)]
    data = [f"data.train_data_path={write(tmp_path / 'train.jsonl', rows)}", "data.val_data_path=null"]
    small = ["grpo.num_prompts_per_step=2", "policy.train_global_batch_size=12", "grpo.val_period=0"]
    folder = f"checkpointing.checkpoint_dir={tmp_path / 'run'}"
    config = load_train_config(GUIDE, [*SMALL, *small, *data, f"policy.model_name={guesser}", folder])
    with pytest.raises(GymError, match=r"12 of 12 episodes failed, the last with verifier_failed.*ground truth"):
        train(config)

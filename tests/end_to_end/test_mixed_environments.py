"""GRPO on several environments at once, and on the components of a user's reward function."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from tiny_runs import column, configuration, run

from regimen.config.load import load_collect_config, load_train_config
from regimen.errors import ConfigError
from regimen.pipelines.collect import collect
from regimen.pipelines.evaluate import evaluate_rollouts

REWARDS = """
def parts(row, output, verdict):
    return {"lower": verdict.reward, "length": float(len(output[-1]["content"][0]["text"]))}
"""


def mixed(model: Path, home: Path) -> dict[str, Any]:
    """Two environments, the first three times as often, four prompts a step."""
    tree = configuration("grpo", model, home, home / "run", max_num_steps=2, num_prompts_per_step=4)
    part = {"dataset_name": "Environment", "num_tasks": 6}
    tree["data"] = {"train": [{**part, "env_name": "often", "weight": 3}, {**part, "env_name": "seldom"}]}
    tree["env"] = {
        "often": {"environment": f"{tiny_runs.__file__}:Letters"},
        "seldom": {"environment": f"{tiny_runs.__file__}:Alike"},
    }
    tree["grpo"] |= {"val_period": 0, "val_at_start": False, "val_at_end": False}
    return tree


def test_rows_and_figures_are_of_each_environment(tiny_folder: Path, tmp_path: Path) -> None:
    tree = mixed(tiny_folder, tmp_path)
    result = run(tree)
    lines = (tmp_path / "run" / "rollouts" / "step_1.jsonl").read_text().splitlines()
    names = [json.loads(line)["_ng_environment_server"] for line in lines]
    assert set(names) <= {"often", "seldom"}
    counted = 0.0
    for name in ("often", "seldom"):
        for bucket in result.ledger:
            counted += sum(column(tmp_path / "run", f"train/environment/{name}/episodes/{bucket}"))
    mixed_steps = len(column(tmp_path / "run", "train/environment/often/reward"))
    assert mixed_steps >= 1
    assert counted == 12 * mixed_steps  # 4 prompts, 3 episodes each
    assert sum(result.ledger.values()) == 24
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert ledger == {"episodes": result.ledger, "environments": result.environments}
    played = Counter(
        json.loads(line)["_ng_environment_server"]
        for step in (1, 2)
        for line in (tmp_path / "run" / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()
    )
    assert {name: sum(buckets.values()) for name, buckets in result.environments.items()} == played
    assert "\n  of often: " in str(result)


def test_a_resumed_run_has_the_ledger_of_one_that_was_not_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    whole = run(mixed(tiny_folder, tmp_path))
    half = mixed(tiny_folder, tmp_path)
    half["checkpointing"] |= {"checkpoint_dir": str(tmp_path / "half")}
    half["logger"] = {**half.get("logger", {}), "log_dir": str(tmp_path / "half")}
    half["grpo"] |= {"max_num_steps": 1}
    run(half)
    half["grpo"] |= {"max_num_steps": 2}
    resumed = run(half, resume=True)
    assert (resumed.ledger, resumed.environments) == (whole.ledger, whole.environments)
    read = [json.loads((tmp_path / name / "ledger.json").read_text()) for name in ("run", "half")]
    assert read[0] == read[1]


def test_components_of_a_reward_function_reach_gdpo(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS)
    tree = configuration("grpo", tiny_folder, tmp_path, tmp_path / "run", max_num_steps=1)
    name = f"{tiny_runs.__file__}:Letters"
    tree["env"] = {name: {"reward_function": f"{file}:parts"}}
    tree["grpo"] |= {"adv_estimator": {"name": "gdpo"}, "val_period": 0, "val_at_start": False, "val_at_end": False}
    del tree["data"]["validation"]
    run(tree)
    (reward,), (lower,), (length,) = (
        column(tmp_path / "run", f"train/{key}") for key in ("reward", "reward/lower", "reward/length")
    )
    assert reward == pytest.approx(lower + length)


def test_a_list_needs_data_that_can_be_played(tiny_folder: Path, tmp_path: Path) -> None:
    tree = mixed(tiny_folder, tmp_path)
    tree["data"]["train"][0]["weight"] = 0
    with pytest.raises(ConfigError, match="weight"):
        load_train_config(tree)
    tree["data"]["train"][0] |= {"weight": 1, "dataset_name": "openai_format"}
    with pytest.raises(ConfigError, match="no data for grpo"):
        load_train_config(tree)


def test_collecting_and_evaluating_tell_environments_apart(tiny_folder: Path, tmp_path: Path) -> None:
    letters = f"{tiny_runs.__file__}:Letters"
    entries = {"often": {"environment": letters, "weight": 3}, "seldom": {"environment": letters}}
    played = {"env": entries, "num_tasks": 4, "generation": {"max_new_tokens": 4, "temperature": 1.0}}
    played |= {"chat_template": "tools", "max_sequence_length": 1000}
    output = tmp_path / "rollouts.jsonl"
    config = {**played, "model": str(tiny_folder), "split": "train", "output": str(output)}
    whole = collect(load_collect_config({**config, "num_tasks": 8}))
    names = [row["_ng_environment_server"] for row in sorted(whole.rows, key=lambda row: row["_ng_task_index"])]
    assert names == ["often", "often", "seldom", "often", "often", "often", "seldom", "often"]
    metrics = json.loads((tmp_path / "rollouts_aggregate_metrics.json").read_text())
    assert [(entry["agent_ref"]["name"], entry["agent_metrics"]["num_rollouts"]) for entry in metrics] == [
        ("often", 6),
        ("seldom", 2),
    ]
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:3]))
    again = collect(load_collect_config({**config, "num_tasks": 8, "resume": True}))
    assert again.num_resumed == 3
    text = lambda rows: [row["response"]["output"][0]["content"] for row in rows]  # noqa: E731
    assert text(again.rows) == text(whole.rows)
    found = evaluate_rollouts(output)
    assert {name: models[0].score.num_rollouts for name, models in found.environments.items()} == {
        "often": 6,
        "seldom": 2,
    }

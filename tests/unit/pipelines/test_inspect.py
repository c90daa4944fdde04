import json
import shlex
from pathlib import Path

import pytest

from regimen.config.load import load_train_config
from regimen.errors import RolloutError, UsageError
from regimen.pipelines.inspect import inspect_rollouts

DATA = Path(__file__).parents[2] / "fixtures" / "rollouts"


def test_the_three_parts_of_an_inspection():
    inspection = inspect_rollouts(DATA / "shop.jsonl")
    assert (inspection.read.rows, inspection.read.failures) == (4, {"agent_run_error": 2})
    assert inspection.statistics.rewards.num_passing == 2
    assert {found.code for found in inspection.findings} == {"many_failures", "few_rollouts"}
    assert [step.action for step in inspection.recommendation.steps] == ["repair", "collect", "grpo", "dpo"]
    assert inspection.recommendation.steps[2].commands[0] == (
        f"regimen convert {DATA / 'shop.jsonl'} --to grpo --out grpo_data"
    )
    assert inspection.error is None


def test_too_many_bad_rows_do_not_hide_the_rest(tmp_path):
    quarantine = tmp_path / "q.jsonl"
    inspection = inspect_rollouts(DATA / "broken.jsonl", quarantine=quarantine)
    assert "14 of 15 rows are bad" in str(inspection.error)
    assert inspection.statistics.rows == 1
    (bad,) = [found for found in inspection.findings if found.code == "bad_rows"]
    assert (bad.count, bad.example.line) == (14, 1)
    assert str(quarantine) in bad.fix
    assert len(quarantine.read_text().splitlines()) == 14


def test_nothing_to_inspect(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("no\n")
    with pytest.raises(RolloutError, match="1 of 1 rows are bad"):
        inspect_rollouts(path)
    path.write_text("")
    with pytest.raises(RolloutError, match="no rows"):
        inspect_rollouts(path)
    with pytest.raises(UsageError, match="no such file"):
        inspect_rollouts(tmp_path / "other.jsonl")


def test_files_of_two_collections_are_noticed(tmp_path):
    lines = (DATA / "shop.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["responses_create_params"]["input"] = "something else"
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    codes = {found.code: found.count for found in inspect_rollouts([DATA / "shop.jsonl", other]).findings}
    assert (codes["duplicate_rows"], codes["task_with_several_prompts"]) == (4, 4)


def test_the_commands_of_the_plan_name_configurations_that_load():
    seen = set()
    for path in ("shop.jsonl", "wild.jsonl"):
        for step in inspect_rollouts(DATA / path).recommendation.steps:
            for command in step.commands:
                words = shlex.split(command)
                if words[:2] == ["regimen", "train"]:
                    loaded = load_train_config(words[2], words[3:])
                    assert loaded.data.train.data_path == f"{step.action}_data/train.jsonl"
                    seen.add(step.action)
    assert seen >= {"grpo", "dpo"}

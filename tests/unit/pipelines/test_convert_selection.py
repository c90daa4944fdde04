"""Conditions, contamination, mixtures and verification, from the files to the folder."""

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from regimen.convert.options import ConvertOptions
from regimen.convert.sidecar import PairRecord, read_sidecar
from regimen.errors import ConvertError, UsageError
from regimen.pipelines.convert import convert
from regimen.pipelines.converted import Totals

FIXTURES = Path(__file__).parents[2] / "fixtures" / "convert"
CALCULATOR, CHOICES = FIXTURES / "calculator.jsonl", FIXTURES / "choices.jsonl"


def _rollout(task, repeat, reward, environment="math", **fields):
    question = f"question {task} of {environment}"
    answer = {"type": "message", "role": "assistant", "content": f"answer {repeat}"}
    return {
        "responses_create_params": {"input": [{"role": "user", "content": question}]},
        "response": {"output": [answer]},
        "reward": reward,
        "expected_answer": "1",
        "_ng_task_index": task,
        "_ng_rollout_index": repeat,
        "agent_ref": {"name": environment},
        **fields,
    }


@pytest.fixture
def written(tmp_path):
    def write(*rows, name="rollouts.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def _all(out):
    files = [out / f"{name}.jsonl" for name in ("train", "val")]
    return [json.loads(line) for path in files if path.exists() for line in path.read_text().splitlines()]


def test_a_condition_keeps_rows_out_of_every_target(written, tmp_path):
    rows = [_rollout(task, repeat, float(repeat), accuracy=repeat / 2) for task in range(3) for repeat in (0, 1, 2)]
    rows.append(_rollout(3, 0, 1.0))
    path = written(*rows)
    for to in ("sft", "dpo", "grpo"):
        manifest = convert(path, to, tmp_path / to, ConvertOptions(where="accuracy<1"))
        assert manifest.ledger.rows["where"] == 4
        assert manifest.screened.missing_fields == {"accuracy": 1}
        assert manifest.rewards.num_scored == 10
    with pytest.raises(ConvertError, match="did you mean 'accuracy'"):
        convert(path, "sft", tmp_path / "wrong", ConvertOptions(where="acuracy<1"))


def test_prompts_of_the_evaluation_are_kept_out_and_named(written, tmp_path):
    path = written(*(_rollout(task, repeat, float(repeat)) for task in range(4) for repeat in (0, 1)))
    evaluation = written({"prompt": "QUESTION 2 of  math"}, name="evaluation.jsonl")
    for to in ("sft", "dpo", "grpo"):
        manifest = convert(path, to, tmp_path / to, ConvertOptions(against=str(evaluation)))
        assert manifest.ledger.rows["contaminated"] == 2
        (example,) = manifest.screened.examples
        assert (example.task_id, example.kind, example.evaluation_line) == ("math/2", "exact", 1)
        assert manifest.inputs[-1].role == "evaluation"
        assert "question 2" not in json.dumps(_all(tmp_path / to))
    with pytest.raises(UsageError, match="no such file"):
        convert(path, "sft", tmp_path / "none", ConvertOptions(against="absent.jsonl"))


def test_environments_are_mixed_by_weights(written, tmp_path):
    rows = [_rollout(task, 0, 1.0, "calculator_agent") for task in range(20)]
    path = written(*rows, *(_rollout(task, 0, 1.0, "mcqa_agent") for task in range(20)))
    options = ConvertOptions(mix={"calculator": 2, "mcqa": 1}, validation_fraction=0)
    manifest = convert(path, "grpo", tmp_path / "down", options)
    assert manifest.environments == {"calculator_agent": 20, "mcqa_agent": 10}
    assert manifest.ledger.rows == {"trained": 30, "left_out_of_mix": 10}
    assert {name: count.rows for name, count in manifest.mix.items()} == manifest.environments
    options = ConvertOptions(mix={"calculator": 2, "mcqa": 1}, upsample=True, validation_fraction=0.2)
    manifest = convert(path, "grpo", tmp_path / "up", options, verify=True)
    assert manifest.ledger.rows.keys() == {"trained", "validation"}
    held_out = (tmp_path / "up" / "val.jsonl").read_text().splitlines()
    assert max(Counter(held_out).values()) == 1
    trained = [json.loads(line)["task_name"] for line in (tmp_path / "up" / "train.jsonl").read_text().splitlines()]
    calculators = sum(json.loads(line)["task_name"] == "calculator_agent" for line in held_out)
    # Every calculator task stands twice, except those that validate.
    assert trained.count("calculator_agent") == 2 * (20 - calculators)
    assert manifest.verified_rows == len(trained) + len(held_out)


def test_environments_are_balanced(written, tmp_path):
    rows = [_rollout(task, repeat, 1.0, "many") for task in range(10) for repeat in (0, 1)]
    path = written(*rows, *(_rollout(task, 0, 1.0, "few") for task in range(4)))
    manifest = convert(path, "sft", tmp_path / "set", ConvertOptions(balance=1.5))
    assert manifest.environments == {"few": 4, "many": 6}
    assert manifest.ledger.rows["balanced"] == 14


def test_a_row_that_is_not_standard_json_changes_no_row_of_another_task(written, tmp_path):
    large = _rollout(1, 0, 2e21)
    options = ConvertOptions(validation_fraction=0)
    lines = []
    for name, rows in (("alone", [large]), ("after", [_rollout(0, 0, 1.0, accuracy=float("nan")), large])):
        convert(written(*rows), "sft", tmp_path / name, options)
        line = (tmp_path / name / "train.sidecar.jsonl").read_bytes().splitlines()[-1]
        lines.append(msgspec.json.decode(line) | {"source": None})
        assert b'"reward":2e21,' in line
    assert lines[0] == lines[1]


def test_pairs_across_tasks_stand_on_one_side_of_the_split(written, tmp_path):
    rows = [_rollout(task, 0, float(task % 2)) for task in range(40)]
    options = ConvertOptions(strategy="stratified", across_tasks=True, validation_fraction=0.3)
    manifest = convert(written(*rows), "dpo", tmp_path / "set", options, verify=True)
    sides = {}
    for name in ("train", "val"):
        for record in read_sidecar(tmp_path / "set" / f"{name}.sidecar.jsonl", PairRecord):
            assert record.chosen.task_id != record.rejected.task_id
            for task in (record.chosen.task_id, record.rejected.task_id):
                assert sides.setdefault(task, name) == name
    assert set(sides.values()) == {"train", "val"}
    assert manifest.ledger.rows.get("no_partner", 0) == 40 - len(sides)
    assert manifest.verified_rows == len(sides) / 2


@pytest.mark.parametrize("path", [CALCULATOR, CHOICES], ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "to, changes",
    [
        ("sft", {}),
        ("sft", {"reward_threshold": 0.0, "reasoning": "inline"}),
        ("sft", {"reward_threshold": 0.0, "reasoning": "drop", "spelling": "nemo_rl"}),
        ("dpo", {"strategy": "all_pairs"}),
        ("dpo", {"format": "preference", "spelling": "nemo_rl"}),
        ("dpo", {"format": "preference", "reasoning": "inline"}),
        ("grpo", {}),
        ("grpo", {"with_pass_rate": True}),
    ],
)
def test_every_written_row_is_verified(path, to, changes, tmp_path):
    manifest = convert(path, to, tmp_path / "set", ConvertOptions(**changes), verify=True)
    assert manifest.verified_rows == len(_all(tmp_path / "set")) > 0
    assert convert(path, to, tmp_path / "unverified", ConvertOptions(**changes)).verified_rows is None


@pytest.mark.parametrize("to, format_name", [("sft", "simple"), ("dpo", "binary"), ("grpo", "response")])
def test_rows_of_strings_are_verified(written, tmp_path, to, format_name):
    path = written(*(_rollout(task, repeat, float(repeat)) for task in range(4) for repeat in (0, 1)))
    manifest = convert(path, to, tmp_path / "set", ConvertOptions(format=format_name), verify=True)
    assert manifest.verified_rows == 4


@pytest.mark.parametrize(
    "to, old, new, said",
    [
        ("sft", b'"content":"The answer is 1,081"', b'"content":"The answer is 1.081"', "The answer is 1.081"),
        ("sft", b'"id":"', b'"id":"x', "call_id"),
        ("dpo", b'"role":"system"', b'"role":"user"', ", context (from "),
        ("dpo", b'"rank":1', b'"rank":-1', ", chosen (from "),
        ("sft", b'"required":', b'"optional":', ", tools (from "),
        ("grpo", b"What is", b"What was", "What was"),
    ],
)
def test_a_row_that_says_something_else_fails_the_command(tmp_path, monkeypatch, to, old, new, said):
    take = Totals.take

    def spoil(totals, piece):
        for side in (piece.train, piece.val):
            side.rows = side.rows.replace(old, new)
        take(totals, piece)

    monkeypatch.setattr(Totals, "take", spoil)
    with pytest.raises(ConvertError) as caught:
        convert(CALCULATOR, to, tmp_path / "set", verify=True)
    assert "train.jsonl:" in caught.value.where or "val.jsonl:" in caught.value.where
    assert str(CALCULATOR) in caught.value.where
    assert said in str(caught.value)
    assert not (tmp_path / "set").exists()

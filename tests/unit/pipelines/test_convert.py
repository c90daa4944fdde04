import json
import shutil
from pathlib import Path

import msgspec
import pytest

from regimen.convert.manifest import read_manifest, xxh128_of
from regimen.convert.options import ConvertOptions
from regimen.convert.sidecar import EpisodeRecord, PairRecord, TaskRecord, read_sidecar
from regimen.errors import ConvertError, RolloutError, UsageError
from regimen.pipelines.convert import convert

FIXTURES = Path(__file__).parents[2] / "fixtures" / "convert"
CALCULATOR, CHOICES = FIXTURES / "calculator.jsonl", FIXTURES / "choices.jsonl"


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _all(out):
    return [
        row for name in ("train", "val") if (out / f"{name}.jsonl").exists() for row in _rows(out / f"{name}.jsonl")
    ]


def _edited(tmp_path, edit):
    """A copy of the calculator file, its decoded rows changed by `edit`, without its siblings."""
    path = tmp_path / "edited.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in edit(_rows(CALCULATOR))))
    return path


def test_sft_counts_every_row_and_every_sampled_token(tmp_path):
    manifest = convert(CALCULATOR, "sft", tmp_path / "set")
    rows = manifest.ledger.rows
    assert rows.pop("trained") + rows.pop("validation") == 4
    assert rows == {"below_threshold": 4, "duplicate": 1, "failed:environment_failed": 1, "failed:timed_out": 1}
    assert manifest.ledger.num_rows == 11
    # Task 0 carries ids: 2 + 3 sampled in the right answer, 2 in the wrong one.
    assert manifest.ledger.num_tokens == 7
    assert manifest.ledger.tokens["below_threshold"] == 2
    assert manifest.ledger.notes == {
        "reasoning_characters_kept": len("Multiply."),
        "rows_with_reasoning_kept": 1,
        "rows_with_invalid_arguments": 1,
        "rows_without_token_ids": 3,
        "trailing_observations_cut": 1,
    }
    assert (manifest.options.reward_threshold, manifest.format, manifest.counts.tasks_seen) == (1.0, "openai", 4)


def test_sft_rows_are_lossless_and_end_with_the_assistant(tmp_path):
    convert(CALCULATOR, "sft", tmp_path / "set")
    rows = {row["messages"][1]["content"]: row for row in _all(tmp_path / "set") if len(row["messages"]) == 5}
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows.values())
    broken = rows["What is 9 - 4?"]["messages"]
    assert broken[0] == {"role": "system", "content": "Use the calculator."}
    assert broken[2]["tool_calls"][0]["function"]["arguments"] == "{expression: 9-4}"
    assert broken[3] == {"role": "tool", "tool_call_id": "z", "name": "calculator", "content": "error"}
    assert rows["What is 9 - 4?"]["tools"][0]["function"]["name"] == "calculator"


def test_sidecar_lines_stand_beside_their_rows(tmp_path):
    out = tmp_path / "set"
    convert(CALCULATOR, "sft", out)
    source = _rows(CALCULATOR)
    for name in ("train", "val"):
        rows, records = _rows(out / f"{name}.jsonl"), list(read_sidecar(out / f"{name}.sidecar.jsonl", EpisodeRecord))
        assert len(rows) == len(records)
        for row, record in zip(rows, records, strict=True):
            original = source[record.source.line - 1]
            assert record.source.path == str(CALCULATOR)
            assert original["_ng_task_index"] == record.task_index
            assert original["responses_create_params"]["input"][1]["content"] == row["messages"][1]["content"]
            assert record.num_prompt_messages == 2


def test_the_folder_can_be_traced_back(tmp_path):
    out = tmp_path / "set"
    manifest = convert(CALCULATOR, "dpo", out)
    assert read_manifest(out) == manifest
    assert [(Path(file.path).name, file.role) for file in manifest.inputs] == [
        ("calculator.jsonl", "rollouts"),
        ("calculator_materialized_inputs.jsonl", "tasks"),
        ("calculator_failures.jsonl", "failures"),
    ]
    assert all(xxh128_of(Path(file.path)) == file.xxh128 for file in manifest.inputs)
    assert {file.name for file in manifest.outputs} == {path.name for path in out.iterdir()} - {"manifest.json"}
    for file in manifest.outputs:
        assert (xxh128_of(out / file.name), (out / file.name).stat().st_size) == (file.xxh128, file.size)
        assert len(_rows(out / file.name)) == file.rows


def test_dpo_pairs_stay_within_their_task(tmp_path):
    out = tmp_path / "set"
    manifest = convert(CALCULATOR, "dpo", out)
    assert manifest.format == "preference"
    assert manifest.ledger.uses["pairs"] == 2
    assert manifest.ledger.rows["no_variance"] == 4
    assert manifest.ledger.rows["not_paired"] == 1
    for name in ("train", "val"):
        for record in read_sidecar(out / f"{name}.sidecar.jsonl", PairRecord):
            assert record.chosen.task_id == record.rejected.task_id
            assert (record.chosen.reward, record.rejected.reward) == (1.0, 0.0)


def test_strings_make_binary_pairs(tmp_path):
    manifest = convert(CHOICES, "dpo", tmp_path / "set")
    assert manifest.format == "binary"
    assert sorted(_all(tmp_path / "set"), key=lambda row: row["chosen"]) == [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": chosen,
            "rejected": rejected,
            "chosen_reward": 1.0,
            "rejected_reward": 0.25,
            "reward_gap": 0.75,
            "chosen_characters": len(chosen),
            "rejected_characters": len(rejected),
            "shared_messages": 1,
        }
        for question, chosen, rejected in (("Is ice warm?", "no", "yes"), ("Is fire hot?", "yes", "no"))
    ]


def test_grpo_takes_the_ground_truth_from_the_task_rows(tmp_path):
    out = tmp_path / "set"
    convert(CALCULATOR, "grpo", out, ConvertOptions(validation_fraction=0))
    rows = _rows(out / "train.jsonl")
    assert [row["expected_answer"] for row in rows] == ["1081", "42", "5", "42"]
    assert [row["_ng_task_index"] for row in rows] == [0, 1, 2, 3]
    assert all(row["agent_ref"] == {"name": "calculator_agent"} for row in rows)
    assert {row["task_name"] for row in rows} == {"calculator_agent"}
    assert all(row["responses_create_params"]["tools"][0]["strict"] for row in rows)
    rates = [record.pass_rate for record in read_sidecar(out / "train.sidecar.jsonl", TaskRecord)]
    assert rates == [2 / 3, 1.0, 0.5, 0.0]
    assert not (out / "val.jsonl").exists()


def test_grpo_without_ground_truth_says_so(tmp_path):
    path = _edited(tmp_path, lambda rows: rows)
    manifest = convert(path, "grpo", tmp_path / "set")
    assert any("4 tasks have no verifier fields" in warning for warning in manifest.warnings)
    named = convert(path, "grpo", tmp_path / "named", tasks=FIXTURES / "calculator_materialized_inputs.jsonl")
    assert not any("verifier fields" in warning for warning in named.warnings)
    assert named.inputs[-1].role == "tasks"


def test_train_and_validation_share_no_task_and_the_split_is_the_same_for_every_order(tmp_path):
    first = convert(CALCULATOR, "dpo", tmp_path / "a", ConvertOptions(seed=3))
    shuffled = _edited(tmp_path, lambda rows: rows[::-1])
    convert(shuffled, "dpo", tmp_path / "b", ConvertOptions(seed=3))
    assert first.counts.train_tasks + first.counts.validation_tasks == 2
    for name in ("train", "val"):
        assert (tmp_path / "a" / f"{name}.jsonl").read_bytes() == (tmp_path / "b" / f"{name}.jsonl").read_bytes()


def test_bad_rows_go_to_quarantine_whoever_finds_them(tmp_path):
    def edit(rows):
        del rows[0]["reward"]
        rows[1]["response"]["output"] = [{"type": "computer_call", "id": "x"}]
        rows[1]["reward"] = 1.0  # a row under the threshold is not read whole
        return rows

    path = _edited(tmp_path, edit)
    manifest = convert(path, "sft", tmp_path / "set", ConvertOptions(max_bad=0.2))
    assert manifest.ledger.rows["quarantined"] == 2
    assert manifest.ledger.num_rows == 10
    quarantine = _rows(tmp_path / "set" / "quarantine.jsonl")
    assert [(line["line"], line["file"]) for line in quarantine] == [(1, str(path)), (2, str(path))]
    assert "no reward" in quarantine[0]["reason"]
    assert "computer_call" in quarantine[1]["reason"]
    assert json.loads(quarantine[1]["text"])["_ng_task_index"] == 0


@pytest.mark.parametrize("kind", [RolloutError, ConvertError])
def test_too_many_bad_rows_stop_the_work_and_keep_the_quarantine(tmp_path, kind):
    def edit(rows):
        if kind is RolloutError:
            rows[0]["reward"] = "high"
        else:
            rows[0]["response"]["output"] = [{"type": "computer_call", "id": "x"}]
        return rows

    path = _edited(tmp_path, edit)
    with pytest.raises(kind, match="1 of 10 rows") as caught:
        convert(path, "sft", tmp_path / "set")
    saved = tmp_path / "set_quarantine.jsonl"
    assert str(saved) in str(caught.value)
    assert len(_rows(saved)) == 1
    with pytest.raises(kind, match="set_quarantine_2"):
        convert(path, "sft", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_grpo_set_needs_no_text_form_of_the_output(tmp_path):
    def edit(rows):
        rows[0]["response"]["output"] = [{"type": "computer_call", "id": "x"}]
        return rows

    assert "quarantined" not in convert(_edited(tmp_path, edit), "grpo", tmp_path / "set").ledger.rows


def test_nothing_left_leaves_no_folder(tmp_path):
    for options, to, text in (
        (ConvertOptions(reward_threshold=2), "sft", "--reward-threshold 1 would keep 5"),
        (ConvertOptions(min_gap=2), "dpo", "--min-gap 1 would give pairs in 2 of 4 tasks"),
        (ConvertOptions(min_pass_rate=0.9, max_pass_rate=0.95), "grpo", "pass rates of 4 tasks from 0 to 1"),
    ):
        with pytest.raises(ConvertError, match=text):
            convert(CALCULATOR, to, tmp_path / "set", options)
    assert list(tmp_path.iterdir()) == []


def test_only_failures_is_said(tmp_path):
    path = _edited(tmp_path, lambda rows: [row for row in rows if row["mask_sample"]])
    with pytest.raises(ConvertError, match="no scored rollout"):
        convert(path, "sft", tmp_path / "set")


def test_misuse_is_refused_before_reading(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        convert(tmp_path / "absent.jsonl", "sft", tmp_path / "set")
    with pytest.raises(UsageError, match="given twice"):
        convert([CALCULATOR, CALCULATOR], "sft", tmp_path / "set")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        convert(CALCULATOR, "sft", tmp_path / "set")


def test_converting_again_replaces_the_folder_when_asked(tmp_path):
    convert(CALCULATOR, "sft", tmp_path / "set")
    with pytest.raises(UsageError, match="--overwrite"):
        convert(CALCULATOR, "dpo", tmp_path / "set")
    convert(CALCULATOR, "dpo", tmp_path / "set", overwrite=True)
    assert read_manifest(tmp_path / "set").target == "dpo"


def test_colliding_task_indices_of_two_collections_are_told_apart(tmp_path):
    other = _edited(tmp_path, lambda rows: [_with_question(row, "Another question?") for row in rows])
    manifest = convert([CALCULATOR, other], "dpo", tmp_path / "set")
    assert manifest.ledger.uses["pairs"] == 4
    assert any("4 task identities stand for several prompts" in warning for warning in manifest.warnings)


def test_equal_prompts_on_both_sides_of_the_split_are_reported(tmp_path):
    def edit(rows):
        return [_with_question(row, "The same?") for row in rows]

    manifest = convert(_edited(tmp_path, edit), "sft", tmp_path / "set")
    assert any("have the prompt of a training row" in warning for warning in manifest.warnings)


def test_fingerprints_and_their_mixture_are_seen(tmp_path):
    def edit(rows):
        return [
            {
                **row,
                "regimen": {
                    "tokenizer": f"t{row['_ng_task_index'] % 2}",
                    "template": "x",
                    "outcome": "ok",
                    "reason": None,
                },
            }
            for row in rows
            if not row["mask_sample"]
        ]

    manifest = convert(_edited(tmp_path, edit), "sft", tmp_path / "set")
    # Of the nine scored rows five reach the threshold; the others are not read whole.
    assert (manifest.tokenizers, manifest.templates) == ({"t0": 3, "t1": 2}, {"x": 5})
    assert any("2 different tokenizers" in warning for warning in manifest.warnings)


def test_standard_loaders_need_nothing_but_the_rows(tmp_path):
    copied = tmp_path / "calculator.jsonl"
    shutil.copy(CALCULATOR, copied)
    convert(copied, "sft", tmp_path / "set")
    decoded = [msgspec.json.decode(line) for line in (tmp_path / "set" / "train.jsonl").read_bytes().splitlines()]
    assert {frozenset(row) for row in decoded} == {frozenset({"messages", "tools"})}


def _with_question(row, question):
    row["responses_create_params"]["input"][1]["content"] = question
    return row

"""`regimen doctor`: exit codes, the screen and the JSON document."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from regimen.cli.main import main


@pytest.fixture
def settings(tiny: ModuleType, tmp_path: Path) -> list[str]:
    """Overrides of the shipped `sft` configuration: a model without weights, 120 rows, batches of 8."""
    model = tmp_path / "model"
    tiny.tiny_tokenizer().save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 258, **tiny.SHAPE}))
    given = [f"policy.model_name={model}", "policy.train_global_batch_size=8", "policy.max_total_sequence_length=64"]
    for split, first in (("train", 0), ("validation", 500)):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(f"{json.dumps(row(index))}\n" for index in range(first, first + 120)))
        given += [f"data.{split}.dataset_name=openai_format", f"data.{split}.data_path={path}"]
    return given


def row(index: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"{index}?"}, {"role": "assistant", "content": f"{index}!"}]}


def test_all_is_well(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "sft", *settings]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in ("120 rows, 120 usable", "15 steps an epoch, 15 in all", "an estimate", "problems: none found"):
        assert expected in text
    assert text.endswith("ok")


def test_json_is_one_document(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "sft", *settings, "--json", "--device-memory", "0.00001"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["algorithm"]) == (False, "sft")
    assert [found["code"] for found in document["findings"]] == ["memory_exceeded"]
    assert document["schedule"]["steps_per_epoch"] == 15
    # "<|im_start|>user\n100?<|im_end|>\n<|im_start|>assistant\n100!<|im_end|>": four special ids, the rest letters
    assert document["data"]["train"]["longest"] == 4 + len("user\n100?") + 1 + len("assistant\n100!")


def test_an_error_is_exit_code_one(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "sft", *settings, "data.train.data_path=/no/such/file.jsonl"]) == 1
    text = capsys.readouterr().out
    assert "data_unreadable" in text
    assert "not ok: 1 to mend first" in text


def test_a_note_is_no_error(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "sft", *settings, "policy.train_global_batch_size=7"]) == 0
    assert "120 rows in batches of 7: 1 make a smaller last batch" in " ".join(capsys.readouterr().out.split())


def test_misuse_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "no_such_configuration"]) == 2
    assert main(["doctor", "sft", "policy.no_such_key=1"]) == 2
    assert main(["doctor"]) == 2


def test_rows_beyond_the_length_do_not_count_as_usable(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "sft", *settings, "policy.max_total_sequence_length=20", "--json"]) == 1  # none is left
    document = json.loads(capsys.readouterr().out)
    # beyond 20 tokens: "user\n" 5, "assistant\n" 10, 4 special ids, a line end, "?" and "!", and twice the digits
    digits = {index: 22 + 2 * len(str(index)) for index in range(120)}
    assert min(digits.values()) == 24
    assert document["data"]["train"]["usable"] == 0
    assert document["schedule"] is None
    assert {(found["code"], found["severity"]) for found in document["findings"]} == {("over_length", "error")}
    # of 120 training rows those with numbers of one digit have 24 tokens: 10 rows; none of validation
    assert main(["doctor", "sft", *settings, "policy.max_total_sequence_length=24", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["data"]["train"]["usable"] == 10

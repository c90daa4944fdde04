"""`regimen plan`: exit codes, the screen and the JSON document."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from regimen.cli.main import main


@pytest.fixture
def settings(tiny: ModuleType, tmp_path: Path) -> list[str]:
    """Overrides of the shipped `sft` configuration: a model without weights, 24 rows, batches of 8."""
    model = tmp_path / "model"
    tiny.tiny_tokenizer().save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 258, **tiny.SHAPE}))
    rows = [{"input": f"{index}?", "output": f"{index}!"} for index in range(24)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [
        f"policy.model_name={model}",
        "policy.train_global_batch_size=8",
        "policy.max_total_sequence_length=64",
        "sft.val_period=0",
        "sft.val_at_start=false",
        "data.train.dataset_name=ResponseDataset",
        f"data.train.data_path={tmp_path / 'train.jsonl'}",
    ]


def test_it_fits(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "sft", "--no-probe", *settings]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in ("8 sequences", "GB, in the phase", "libraries", "no time was measured, as asked", "fits:"):
        assert expected in text


def test_it_does_not_fit(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "sft", "--device-memory", "0.0004", *settings]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "policy.activation_checkpointing=true" in text
    assert "does not fit" in text


def test_a_cluster_s_processes_are_planned_from_here(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    cluster = ["policy.dtensor_cfg.enabled=true", "cluster.num_nodes=2", "cluster.gpus_per_node=1"]
    assert main(["plan", "sft", *settings, *cluster]) == 0
    assert "are here" in capsys.readouterr().out


def test_one_json_document(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "sft", "--no-probe", "--json", *settings]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["algorithm"], found["total_steps"], found["fits"]) == (1, "sft", 3, True)
    assert max(found["memory"]["phases"].values()) == found["needed"]


def test_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "no-such-configuration"]) == 2
    assert "no-such-configuration" in capsys.readouterr().err

"""The whole quickstart on the small model, and the gain it must show. Minutes long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regimen.pipelines.quickstart import quickstart

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    quickstart(folder)
    summary = json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))
    return folder, {name.split("/")[-1]: model for name, model in summary["models"].items()}


def test_the_recommended_path_solves_the_task(finished: tuple[Path, dict[str, Any]]) -> None:
    models = finished[1]
    assert models["smollm2-135m-instruct"]["mean_reward"] <= 0.35
    assert models["sft_grpo"]["mean_reward"] >= 0.90


def test_grpo_alone_gains_at_least_30_points(finished: tuple[Path, dict[str, Any]]) -> None:
    assert finished[1]["grpo"]["difference"] >= 0.30


@pytest.mark.parametrize("name", ["sft_grpo", "grpo", "dpo"])
def test_every_model_is_better_and_its_interval_excludes_zero(finished: tuple[Path, dict[str, Any]], name: str) -> None:
    model = finished[1][name]
    assert model["difference"] > 0
    assert model["difference_interval"][0] > 0
    assert model["verdict"] == "better"


def test_every_row_is_accounted_for(finished: tuple[Path, dict[str, Any]]) -> None:
    folder = finished[0]
    num_rows = len((folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines())
    for target in ("sft", "dpo", "grpo"):
        ledger = json.loads((folder / target / "manifest.json").read_text(encoding="utf-8"))["ledger"]
        assert sum(ledger["rows"].values()) == ledger["num_rows"] >= num_rows
    assert (folder / "report.html").stat().st_size > 10_000

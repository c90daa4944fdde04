"""The whole quickstart on the small model, and the gain it must show. Minutes long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regimen.cli.main import main
from regimen.pipelines.quickstart import SMOKE, quickstart

pytestmark = pytest.mark.slow

MODELS = ("smollm2-135m-instruct", "sft_grpo", "grpo", "dpo")


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


def test_the_commands_by_hand_give_the_same_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's commands, one after the other, on as few tasks and steps as the smoke run takes."""
    quickstart(tmp_path / "quickstart", smoke=True)
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    monkeypatch.chdir(by_hand)
    commands = commands_by_hand()
    assert [command[1] for command in commands] == ["collect", "inspect", *["convert"] * 3, *["train"] * 4, "evaluate"]
    for _, verb, *arguments in commands:
        configuration = next((word for word in arguments if word.startswith("quickstart/")), "")
        overrides = SMOKE.get(configuration.removeprefix("quickstart/"), [])
        assert main([verb, *arguments, *overrides]) == 0
    for file in ("rollouts.jsonl", *(f"evaluation/{name}/rollouts.jsonl" for name in MODELS)):
        assert episodes_of(by_hand / "runs" / "quickstart" / file) == episodes_of(tmp_path / "quickstart" / file)


def commands_by_hand() -> list[list[str]]:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = readme.split("By hand", 1)[1].split("```bash\n", 1)[1].split("```", 1)[0]
    return [line.split() for line in block.splitlines()]


def episodes_of(path: Path) -> dict[tuple[int, int], tuple[float, list[list[int]]]]:
    """Reward and sampled ids by task and repeat."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        (row["_ng_task_index"], row["_ng_rollout_index"]): (
            row["reward"],
            [item["generation_token_ids"] for item in row["response"]["output"] if "generation_token_ids" in item],
        )
        for row in rows
    }

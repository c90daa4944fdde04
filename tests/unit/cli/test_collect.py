from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from regimen.cli import collect as module
from regimen.cli.collect import config_of, print_figures
from regimen.cli.main import main
from regimen.errors import ConfigError, UsageError
from regimen.gym.collect import Collection


def row(reward: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"response": {"usage": {"output_tokens": 5}}}
    if reward is None:
        return {**found, "_ng_failure_class": "model_failed", "regimen": {"outcome": "model_failed"}}
    return {**found, "reward": reward, "regimen": {"outcome": "ok"}}


@pytest.fixture
def configs(monkeypatch) -> list[Any]:
    """The configurations that the command hands to the pipeline, which gives one passing, failing, failed row."""
    seen: list[Any] = []

    def collect(config: Any, *, on_start: Any, on_row: Any) -> Collection:
        seen.append(config)
        on_start(3)
        rows = [row(1.0), row(0.0), row(None)]
        for one in rows:
            on_row(one)
        return Collection(rows=rows[:2], failures=rows[2:], num_resumed=1, seconds=2.0)

    monkeypatch.setattr(module, "collect_rollouts", collect)
    return seen


def test_flags_alone(configs, capsys):
    assert main(["collect", "--model", "m", "--num-tasks", "3", "--temperature", "0", "--output", "a b.jsonl"]) == 0
    (config,) = configs
    assert (config.model, config.num_tasks, config.generation.temperature) == ("m", 3, 0.0)
    assert (config.output, config.environment.name, config.resume) == ("a b.jsonl", "calculator", False)
    shown = capsys.readouterr().out
    assert "3 of calculator/train, 1 of them from before" in shown
    assert "mean 0.500, passing 50.0%" in shown
    assert "1 failed, see a b_failures.jsonl" in shown


def test_policies_elsewhere(configs):
    assert main(["collect", "--model", "m", "--model-url", "http://h/v1", "--token-ids"]) == 0
    assert main(["collect", "--gym", "http://h:11000", "--agent", "a", "--tasks", "t.jsonl"]) == 0
    endpoint, gym = configs
    assert (endpoint.model, endpoint.model_url, endpoint.token_ids) == ("m", "http://h/v1", True)
    assert (gym.gym, gym.agent, gym.tasks, gym.model) == ("http://h:11000", "a", "t.jsonl", "")


def test_json(configs, capsys):
    assert main(["collect", "--model", "m", "--json"]) == 0
    assert '"outcomes": {"ok": 2, "model_failed": 1}, "mean_reward": 0.5' in capsys.readouterr().out


def test_a_file_overrides_and_flags_in_rising_order(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: file\nenvironment: {name: calculator}\nseed: 1\nnum_tasks: 2\noutput: r.jsonl\n")
    config = config_of([str(path), "num_tasks=5", "seed=5"], {"seed": 9, "split": None})
    assert (config.model, config.num_tasks, config.seed) == ("file", 5, 9)


def test_misuse(capsys):
    with pytest.raises(UsageError, match=r"two configurations given: a\.yaml and b\.yaml"):
        config_of(["a.yaml", "b.yaml"], {})
    with pytest.raises(ConfigError, match="model"):
        config_of([], {})
    assert main(["collect", "--model", "m", "num_task=3"]) == 2
    assert "num_tasks" in capsys.readouterr().err


def test_figures_without_a_scored_episode():
    console = Console(file=io.StringIO(), width=80)
    figures = {"episodes": 0, "environment": "e", "split": "test", "resumed": 0, "outcomes": {}, "mean_reward": None}
    print_figures({**figures, "passing": None, "seconds": 0.0, "output": "r.jsonl"}, console)
    assert "reward" not in console.file.getvalue()

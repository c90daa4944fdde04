"""What GRPO plays with: its limits, and validation that says what it does not know."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import load_train_config
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError
from regimen.generation.base import Sampling
from regimen.generation.transformers import TransformersGeneration
from regimen.gym.agent import Limits
from regimen.gym.collect import Collection
from regimen.gym.environment import load_environment
from regimen.pipelines import prepare
from regimen.pipelines.batches import Player

NO_TASKS = """
from regimen.gym.environment import Environment

class Empty(Environment):
    def tasks(self, split, num_tasks=None):
        return []

    async def verify(self, session, task, output): ...
"""


def config(environment: str = "calculator") -> TrainConfig:
    name = {"dataset_name": "Environment", "env_name": environment, "data_path": None}
    data = {split: {**name, "split": split} for split in ("train", "validation")}
    return load_train_config({"defaults": "quickstart/grpo", "data": data, "grpo": {"max_val_samples": 2}})


class Stops:
    stop_ids = (1,)


def player() -> Player:
    made: Any = Player(load_environment("calculator"), None, Stops(), Sampling(), Limits(), 2, "m")  # type: ignore
    return made


def test_the_clock_ends_no_episode_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersGeneration, "load", lambda *_, **__: None)
    monkeypatch.setattr(prepare, "resolve_model", str)
    made = prepare._player(config(), load_environment("calculator"), Stops(), [])  # type: ignore
    assert made.limits.episode_seconds is None


def test_validation_in_which_everything_failed_has_no_reward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Player, "play", lambda *_: Collection(rows=[], failures=[{}, {}]))
    validate = prepare._episode_validation(config(), player(), tmp_path)
    assert validate is not None
    figures = validate(None, 0)  # type: ignore
    assert math.isnan(figures["reward"])  # and not 0
    assert figures["num_failed"] == 2.0


def test_validation_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text(NO_TASKS)
    with pytest.raises(ConfigError, match="no validation tasks"):
        prepare._episode_validation(config(f"{tmp_path / 'empty.py'}:Empty"), player(), tmp_path)

"""Collecting from a server that is killed, restarted and misbehaves: nothing is lost, nothing is there twice."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import load_collect_config
from regimen.errors import GymError
from regimen.pipelines.collect import collect

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("collection.chaos")


@pytest.mark.slow
def test_every_episode_is_there_once(chaos: Any, tmp_path: Path) -> None:
    found = chaos.collect_in_chaos(tmp_path, 20, 20, seconds_up=2.0)
    assert found["episodes"] == 400
    assert found["server_starts"] > 1


def test_a_server_that_always_fails_is_named_when_the_run_stops(chaos: Any, tmp_path: Path) -> None:
    server = chaos.ModelServer()
    url = server.url
    server.kill()
    source = {"environment": {"name": "calculator"}, "num_tasks": 1, "model": "policy", "model_url": url}
    with pytest.raises(
        GymError, match=rf"1 of 1 episodes failed.*model_failed.*{url}/chat/completions.*cannot connect"
    ):
        collect(load_collect_config({**source, "output": str(tmp_path / "rollouts.jsonl")}))

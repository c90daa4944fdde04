"""What is said of a model before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import load_collect_config, load_evaluate_config
from regimen.errors import ConfigError
from regimen.pipelines.collect import collect
from regimen.pipelines.evaluate import evaluate
from regimen.pipelines.models import check_length


def model(folder: Path, **config: Any) -> str:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config))
    return str(folder / "model")


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    name = model(tmp_path, max_position_embeddings=128)
    check_length(name, 128, "length")
    with pytest.raises(ConfigError, match=r"length: is 129, but the model .* has 128 positions; .*set length=128"):
        check_length(name, 129, "length")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_position_embeddings": 128, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 128}},
        {"text_config": {"max_position_embeddings": 512}},
    ],
)
def test_scaled_positions_count(tmp_path: Path, config: dict[str, Any]) -> None:
    check_length(model(tmp_path, **config), 512, "length")


def test_collect_and_evaluate_refuse_before_loading(tmp_path: Path) -> None:
    name, environment = model(tmp_path, max_position_embeddings=128), {"name": "calculator"}
    common = {"environment": environment, "num_tasks": 1, "output": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="max_sequence_length: is 2048"):
        collect(load_collect_config({"model": name, **common}))
    with pytest.raises(ConfigError, match="max_sequence_length: is 2048"):
        evaluate(load_evaluate_config({"model": name, **common}))
    assert not (tmp_path / "out").exists()

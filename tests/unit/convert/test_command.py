"""The command at the end of a conversion: what the rows decide stands in it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from regimen.config.load import load_train_config
from regimen.convert.command import training_command
from regimen.convert.manifest import Manifest


def command(folder: Path, to: str, row_format: str, train: int, validation: int) -> list[str]:
    counts = SimpleNamespace(train_rows=train, validation_rows=validation)
    manifest = cast("Manifest", SimpleNamespace(target=to, format=row_format, counts=counts))
    return shlex.split(training_command(manifest, folder) or "")


def write(folder: Path, *answers: str) -> Path:
    lines = [json.dumps({"input": "q", "output": answer}) + "\n" for answer in answers]
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize(
    ("to", "row_format", "dataset"),
    [("sft", "openai", "openai_format"), ("sft", "simple", "ResponseDataset"),
     ("dpo", "binary", "BinaryPreferenceDataset"),
     ("dpo", "preference", "PreferenceDataset"), ("grpo", "response", "ResponseDataset")],
)  # fmt: skip
@pytest.mark.parametrize("validation", [0, 3])
def test_the_command_is_a_configuration_that_loads(
    to: str, row_format: str, dataset: str, validation: int, tmp_path: Path
) -> None:
    words = command(write(tmp_path, "42"), to, row_format, 100, validation)
    assert words[:3] == ["regimen", "train", to]
    config: Any = load_train_config(words[2], words[3:])
    assert config.policy.model_name == "MODEL"
    assert config.data.train.dataset_name == dataset
    assert config.data.train.data_path == str(tmp_path / "train.jsonl")
    assert (config.data.validation is not None) == bool(validation)


def test_who_judges_and_how_many_prompts_a_step_takes(tmp_path: Path) -> None:
    assert "data.default.env_name=math" in command(write(tmp_path, "42", "B"), "grpo", "response", 32, 0)
    letters = command(write(tmp_path, "A", "(B)", "C."), "grpo", "response", 3, 0)
    assert "data.default.env_name=multiple_choice" in letters
    assert "grpo.num_prompts_per_step=3" in letters
    many = command(tmp_path, "grpo", "response", 32, 0)
    assert not any(word.startswith("grpo.num_prompts") for word in many)


def test_gym_rows_do_not_tell_their_turns(tmp_path: Path) -> None:
    assert command(tmp_path, "grpo", "gym", 10, 2) == []

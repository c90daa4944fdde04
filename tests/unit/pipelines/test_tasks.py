"""Tasks of a file: each has an index of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import load_train_config
from regimen.config.schema_data import DatasetConfig
from regimen.errors import ConvertError
from regimen.gym.environment import Task, load_environment
from regimen.pipelines.tasks import environment_of, tasks_of_dataset


def tasks_in(folder: Path, *indices: Any) -> list[Task]:
    """The tasks of a file with these indices; "blank" is a blank line, "none" a row without the field."""
    rows = [{"responses_create_params": {"input": str(place)}} for place in range(len(indices))]
    lines: list[str] = []
    for index, row in zip(indices, rows, strict=True):
        stamped = row if index == "none" else {**row, "_ng_task_index": index}
        lines.append("" if index == "blank" else json.dumps(stamped))
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(lines) + "\n")
    config = DatasetConfig(dataset_name="NemoGymDataset", data_path=str(path), env_name="calculator")
    return tasks_of_dataset(config, load_environment("calculator"), "train")


def test_indices_are_those_of_the_rows_or_their_places(tmp_path: Path) -> None:
    assert [task.index for task in tasks_in(tmp_path, 7, 3)] == [7, 3]
    assert [task.index for task in tasks_in(tmp_path, "none", "none", None)] == [0, 1, 2]


def test_rows_without_an_index_take_none_that_another_row_has(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, "none", 0, "none", 2)
    assert [task.index for task in tasks] == [1, 0, 3, 2]
    assert [task.row["responses_create_params"]["input"] for task in tasks] == ["0", "1", "2", "3"]


def test_two_tasks_of_one_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="lines 1 and 4 both are task 5"):
        tasks_in(tmp_path, 5, 6, "blank", 5)


@pytest.mark.parametrize("index", ["5", 1.5, True])
def test_an_index_is_a_whole_number(tmp_path: Path, index: Any) -> None:
    with pytest.raises(ConvertError, match="_ng_task_index"):
        tasks_in(tmp_path, 0, index)


def config_of(train: object, env: dict[str, Any] | None = None) -> Any:
    tree = {"defaults": "grpo", "policy": {"model_name": "m"}, "data": {"train": train, "validation": None}}
    off = {"val_period": 0, "val_at_start": False, "val_at_end": False}
    return load_train_config({**tree, "grpo": off, **({"env": env} if env else {})})


def test_a_list_of_data_sets_is_drawn_from_by_weight(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"responses_create_params": {"input": f"q{n}"}}) + "\n" for n in range(3)))
    file = {"dataset_name": "NemoGymDataset", "data_path": str(path), "env_name": "sums"}
    made = {"dataset_name": "Environment", "env_name": "multiple_choice", "weight": 2}
    config = config_of([made, file], {"sums": {"environment": "calculator"}})
    environment = environment_of(config, config.data.train)
    tasks = tasks_of_dataset(config.data.train, environment, "train")
    names = [task.row["agent_ref"]["name"] for task in tasks]
    assert [task.index for task in tasks] == list(range(len(tasks)))
    assert names.count("sums") == 3
    assert names[:6].count("multiple_choice") == 4
    assert environment.playing(tasks[names.index("sums")]).name == "sums"
    of_file = [
        task.row["responses_create_params"]["input"] for task in tasks if task.row["agent_ref"]["name"] == "sums"
    ]
    assert of_file == ["q0", "q1", "q2"]


def test_rows_that_name_several_environments_are_played_by_them(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    rows = [{"responses_create_params": {"input": "q"}, "agent_ref": {"name": n}} for n in ("math", "calculator")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of({"dataset_name": "NemoGymDataset", "data_path": str(path)})
    environment = environment_of(config, config.data.train)
    tasks = tasks_of_dataset(config.data.train, environment, "train")
    assert [environment.playing(task).name for task in tasks] == ["math", "calculator"]

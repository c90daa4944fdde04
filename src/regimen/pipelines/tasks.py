"""The tasks that GRPO plays: an environment's own, task rows, or questions and answers judged by an environment.

In: a data set's section. Out: an environment and its tasks. Refuses: data without an environment to judge it, and rows
that are no tasks, with their line.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from regimen.config.nemo_gym import is_played_by_gym
from regimen.config.schema import TrainConfig
from regimen.config.schema_data import DatasetConfig
from regimen.errors import ConfigError, ConvertError, UsageError
from regimen.gym.environment import SPLITS, Environment, Split, Task
from regimen.gym.mixture import Drawn, Mixture, load_entry, mixed
from regimen.pipelines.questions import question_tasks


def environment_of(config: TrainConfig, dataset: DatasetConfig) -> Environment:
    """The environment that plays and judges the data set's tasks; a mixture where there are several."""
    names = list(dict.fromkeys(name for part in dataset.sources for name in _environments_of(part)))
    members = {name: load_entry(name, config.env.get(name, {})) for name in names}
    return Mixture(members=members) if len(members) > 1 else members[names[0]]


def training_tasks(config: TrainConfig) -> tuple[Environment | None, list[Task]]:
    """What `data.train` plays. Raises `ConfigError` where its tasks fill no step."""
    if config.data.train is None:
        raise ConfigError("there are no tasks", where="data.train", expected="dataset_name: Environment, env_name")
    environment, tasks = tasks_to_play(config, config.data.train, "train")
    if len(tasks) < config.tasks_per_generation:
        raise ConfigError(f"{len(tasks)} tasks", where="data.train", expected=f"at least {config.tasks_per_generation}")
    return environment, tasks


def tasks_to_play(config: TrainConfig, data: DatasetConfig, split: Split) -> tuple[Environment | None, list[Task]]:
    """The tasks of a data set, and the environment that plays them; None where agents of a running gym do."""
    if is_played_by_gym(config, data):
        return None, tasks_of_gym(data)
    environment = environment_of(config, data)
    return environment, tasks_of_dataset(data, environment, split)


def tasks_of_dataset(dataset: DatasetConfig, environment: Environment, split: Split) -> list[Task]:
    """The tasks, in the environment's or the file's order; of a mixture, by weight."""
    if dataset.parts is not None:
        return _mixed_tasks(dataset.parts, environment, split)
    if dataset.dataset_name == "Environment":
        wanted = dataset.split or split
        if wanted not in SPLITS:
            raise ConfigError(f"unknown split {wanted!r}", where="data.train.split", expected=", ".join(SPLITS))
        return environment.tasks(wanted, dataset.num_tasks)
    path = Path(dataset.data_path or "")
    if dataset.dataset_name == "ResponseDataset":
        return question_tasks(dataset, environment, read_rows(path), split)
    return read_tasks(path, dataset.num_tasks)


def tasks_of_gym(dataset: DatasetConfig) -> list[Task]:
    """The rows that agents of a running gym play, in the file's order."""
    return read_tasks(Path(dataset.data_path or ""), dataset.num_tasks)


def _mixed_tasks(parts: list[DatasetConfig], environment: Environment, split: Split) -> list[Task]:
    """The tasks of several data sets by weight, until one whose turn it is has no more."""
    members = environment.members if isinstance(environment, Mixture) else {}
    sources: list[Drawn] = []
    for part in parts:
        name = part.env_name if part.env_name in members else None  # None: the rows name theirs, or all have one
        tasks = tasks_of_dataset(part, environment if name is None else members[name], split)
        sources.append(Drawn(tasks, part.weight, name))
    return mixed(sources)


def read_tasks(path: Path, num_tasks: int | None = None) -> list[Task]:
    """The first `num_tasks` tasks of a file of task rows (None: all)."""
    return _indexed(path, _task_rows(path))[:num_tasks]


def _indexed(path: Path, rows: dict[int, dict[str, Any]]) -> list[Task]:
    """Tasks by their rows' indices, which group episodes and so must differ; rows without one get those left."""
    lines: dict[int, int] = {}
    for number, row in rows.items():
        index = row.get("_ng_task_index")
        if index is None:
            continue
        if type(index) is not int:
            raise ConvertError(f"_ng_task_index is {index!r}", where=f"{path}:{number}", expected="a whole number")
        if index in lines:
            raise ConvertError(
                f"lines {lines[index]} and {number} both are task {index}",
                where=str(path),
                expected="an _ng_task_index of its own for each task",
                fix="remove one, or convert the rollouts of each environment by themselves",
            )
        lines[index] = number
    free = (index for index in count() if index not in lines)
    own = {number: index for index, number in lines.items()}
    return [Task(own[number] if number in own else next(free), row) for number, row in rows.items()]


def read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """The rows of a file by line, counted from 1."""
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path), fix="check the path of the tasks")
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConvertError(f"not JSON ({error})", where=f"{path}:{number}") from None
        if not isinstance(row, dict):
            raise ConvertError("not a JSON object", where=f"{path}:{number}")
        rows[number] = row
    if not rows:
        raise UsageError("the file holds no task", where=str(path))
    return rows


def _task_rows(path: Path) -> dict[int, dict[str, Any]]:
    rows = read_rows(path)
    for number, row in rows.items():
        if "responses_create_params" not in row:
            raise ConvertError("not a task row", where=f"{path}:{number}", expected="responses_create_params")
    return rows


def _environments_of(dataset: DatasetConfig) -> list[str]:
    """The environments of a data set: the one it names, or those that its rows name."""
    if dataset.env_name is not None:
        return [dataset.env_name]
    if dataset.data_path is None:
        raise ConfigError("no environment is named", where="data.train.env_name")
    path = Path(dataset.data_path)
    names = sorted({str((row.get("agent_ref") or {}).get("name")) for row in _task_rows(path).values()})
    if "None" in names:
        raise ConfigError(
            "some rows name no environment",
            where=str(path),
            expected="the environment in agent_ref.name",
            fix="set data.train.env_name",
        )
    return names

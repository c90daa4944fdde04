"""The tasks that GRPO plays: an environment's own, or rows of a converted folder judged by an environment.

In: a data set's section. Out: an environment and its tasks. Refuses: data without an environment to judge it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regimen.config.schema import TrainConfig
from regimen.config.schema_data import DatasetConfig
from regimen.errors import ConfigError, ConvertError, UsageError
from regimen.gym.environment import SPLITS, Environment, Split, Task, load_environment


def environment_of(config: TrainConfig, dataset: DatasetConfig) -> Environment:
    """The environment that plays and judges the data set's tasks."""
    name = dataset.env_name
    if dataset.dataset_name == "ResponseDataset":
        raise ConfigError(
            f"GRPO on a ResponseDataset with env.{name or 'math'} is not built yet",
            where="data.train.dataset_name",
            expected="Environment or NemoGymDataset",
            fix="convert the rollouts with --to grpo and train on the tasks it writes",
        )
    if name is None:
        if dataset.data_path is None:
            raise ConfigError("no environment is named", where="data.train.env_name")
        name = _environment_of_rows(Path(dataset.data_path))
    return load_environment(name, config.env.get(name, {}))


def tasks_of_dataset(dataset: DatasetConfig, environment: Environment, split: Split) -> list[Task]:
    """The tasks, in the environment's or the file's order."""
    if dataset.dataset_name == "Environment":
        wanted = dataset.split or split
        if wanted not in SPLITS:
            raise ConfigError(f"unknown split {wanted!r}", where="data.train.split", expected=", ".join(SPLITS))
        return environment.tasks(wanted, dataset.num_tasks)
    rows = _read_rows(Path(dataset.data_path or ""))
    return [Task(int(row.get("_ng_task_index", index)), row) for index, row in enumerate(rows)][: dataset.num_tasks]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path), fix="check data.train.data_path")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConvertError(f"not JSON ({error})", where=f"{path}:{number}") from None
        if not isinstance(row, dict) or "responses_create_params" not in row:
            raise ConvertError("not a task row", where=f"{path}:{number}", expected="responses_create_params")
        rows.append(row)
    if not rows:
        raise UsageError("the file holds no task", where=str(path))
    return rows


def _environment_of_rows(path: Path) -> str:
    names = {str((row.get("agent_ref") or {}).get("name")) for row in _read_rows(path)}
    if len(names) != 1 or "None" in names:
        raise ConfigError(
            f"the rows name {', '.join(sorted(names))}",
            where=str(path),
            expected="one environment in agent_ref.name",
            fix="set data.train.env_name",
        )
    return names.pop()

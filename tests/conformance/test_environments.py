"""What every environment promises, on every environment that ships; the checks are those of `regimen test environment`.

A new environment adds nothing here, unless it cannot be without an option.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_judge import running_judge

from regimen.errors import ConfigError
from regimen.gym import environments
from regimen.gym.conformance import PROMISES
from regimen.gym.environment import SPLITS, Environment, load_environment, shipped_environments

NUM_TASKS = 60


@pytest.fixture(params=shipped_environments())
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, dict[str, Any]]]:
    """What environments cannot be without; and of many datasets a few, as that environment's own tests look at all."""
    with running_judge() as judge:
        yield {
            "rubric": {"judge_url": judge.url, "judge_model": "fake"},
            "reasoning_gym": {"dataset": ["chain_sum", "gcd", "maze", "syllogism"]},
        }


@pytest.fixture
def make(name, options) -> Callable[..., Environment]:
    def made(options: dict[str, dict[str, Any]] = options) -> Environment:
        try:
            return load_environment(name, options.get(name))
        except ConfigError as error:
            if "bubblewrap" in str(error) or "sandbox" in str(error):
                pytest.skip(str(error))
            raise

    return made


@pytest.mark.parametrize("promise", PROMISES)
async def test_the_promise_is_kept(make, promise):
    assert await PROMISES[promise](make(), NUM_TASKS) is None


def test_the_name_is_the_folder(name, make):
    environment = make()
    assert environment.name == name
    assert environment.max_turns >= 1


def test_the_example_rows_are_the_first_tasks(name, make, options):
    """One of each kind, or five."""
    if name == "calculator":
        pytest.skip("has none")
    path = Path(environments.__file__).parent / name / "example.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if name == "reasoning_gym":  # one of each of some data sets
        options = {name: {"dataset": [row["dataset"] for row in rows]}}
    tasks = make(options).tasks("train")
    kinds = {task.row.get("kind") for task in tasks}
    assert [task.row for task in tasks[: 5 if kinds == {None} else len(kinds)]] == rows


@pytest.mark.parametrize("split", SPLITS)
def test_another_one_has_the_same_tasks(make, split):
    first, second = (make().tasks(split, NUM_TASKS) for _ in range(2))
    assert [task.row for task in first] == [task.row for task in second]


def test_an_unknown_option_is_refused(name):
    with pytest.raises(Exception, match="no_such_option"):
        load_environment(name, {"no_such_option": 1})

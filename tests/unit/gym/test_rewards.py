"""Reward functions of a user's file, on any environment: what they get, what they may return, how they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regimen.errors import ConfigError, GymError
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, load_environment

FILE = """
def length(row, output):
    return len(output[-1]["content"][0]["text"])

async def parts(row, output):
    return {"right": float(row["expected_answer"] in str(output)), "short": 0.25}

def weighed(row, output, verdict):
    return {"reward": 2 * verdict.reward, "own": verdict.reward}

def nothing(row, output):
    return None

def infinite(row, output):
    return {"a": float("inf")}

def empty(row, output):
    return {}

def broken(row, output):
    raise KeyError("no such field")

def other(row):
    return 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(FILE)
    return path


def judged(file: Path, function: str, name: str = "multiple_choice") -> Environment:
    return load_environment(name, {"reward_function": f"{file}:{function}"})


async def verdict(environment: Environment, text: str) -> Any:
    task = environment.tasks("train", 1)[0]
    return await environment.verify(await environment.seed(task), task, [message(text)])


async def test_a_number_is_the_reward(file: Path) -> None:
    found = await verdict(judged(file, "length"), "four")
    assert (found.reward, found.components) == (4.0, {})


async def test_components_add_up_and_may_come_from_an_async_function(file: Path) -> None:
    environment = judged(file, "parts", "math")
    answer = environment.tasks("train", 1)[0].row["expected_answer"]
    found = await verdict(environment, f"it is {answer}")
    assert (found.reward, found.components) == (1.25, {"right": 1.0, "short": 0.25})
    assert (await verdict(environment, "nothing")).reward == 0.25


async def test_a_function_that_asks_for_the_verdict_gets_it(file: Path) -> None:
    environment = judged(file, "weighed")
    task = environment.tasks("train", 1)[0]
    right = await environment.solve(None, task)
    found = await environment.verify(None, task, right or [])
    assert (found.reward, found.components) == (2.0, {"own": 1.0})
    assert "extracted_answer" in found.metrics


@pytest.mark.parametrize("function", ["nothing", "infinite", "empty"])
async def test_what_is_no_finite_number_is_a_failure(file: Path, function: str) -> None:
    with pytest.raises(GymError, match=function):
        await verdict(judged(file, function), "x")


async def test_what_the_function_raises_is_a_failure(file: Path) -> None:
    with pytest.raises(KeyError):
        await verdict(judged(file, "broken"), "x")


def test_a_resumed_collection_must_have_the_same_function(file: Path) -> None:
    before = judged(file, "length").judged_by
    assert before["reward_function"] == f"{file}:length"
    file.write_text(FILE + "\n# changed\n")
    assert judged(file, "length").judged_by != before
    assert load_environment("calculator").judged_by == {}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("{file}", "names no function"),
        ("{file}:lenght", "did you mean 'length'"),
        ("{file}:other", "a function of the task's row"),
        ("no_such.py:f", "there is no file"),
    ],
)
def test_refusals(file: Path, name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_environment("calculator", {"reward_function": name.format(file=file)})

"""Puzzles of the package: oracle and adversarial answers, settings, splits, refusals; all datasets under `slow`."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from regimen.errors import ConfigError, GymError
from regimen.gym.conformance import message
from regimen.gym.environment import Task, load_environment
from regimen.gym.environments.reasoning_gym import ReasoningGym, package
from regimen.gym.environments.reasoning_gym.environment import extract_answer
from regimen.gym.environments.reasoning_gym.worker import is_plain

pytestmark = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")

# Datasets with a scorer of their own each: Python's eval, SymPy's parser, emptiness compared, digits compared.
SOME = [
    "binary_matrix",
    "chain_sum",
    "coin_flip",
    "game_of_life_halting",
    "gcd",
    "n_queens",
    "polynomial_multiplication",
]
SOME += ["spiral_matrix", "string_insertion"]
ADVERSARIAL = [
    "I do not know.",
    "True or False",
    "()",
    "[]",
    "oracle_answer",
    "[oracle_answer]",
    "[c for c in oracle_answer]",
    "entry['metadata'].clear()",
    "__import__('os').getpid()",
    "[].__class__",
    "9**9**9**9",
    "0" * 20_000,
    "(" * 5_000 + ")" * 5_000,
]


def said(text: str) -> list[dict[str, Any]]:
    return [message(text)]


@pytest.fixture(scope="module")
def some() -> ReasoningGym:
    return ReasoningGym(dataset=SOME)


async def wrongly_judged(environment: ReasoningGym, tasks: list[Task]) -> list[Any]:
    """The tasks where the oracle does not score 1, or an adversarial answer not 0."""
    limit = asyncio.Semaphore(4)

    async def judged(task: Task) -> list[Any]:
        expected, question = task.row["expected_answer"], task.row["question"]
        texts = [expected, question, "", *(f"<answer>{a}</answer>" for a in [*ADVERSARIAL, question] if a != expected)]
        async with limit:
            right = await environment.verify(None, task, said(f"<answer>{expected}</answer>"))
            rewards = [(await environment.verify(None, task, said(text))).reward for text in texts]
        found = [text[:40] for text, reward in zip(texts, rewards, strict=True) if reward != 0]
        return [(task.row["dataset"], right.reward, found)] if right.reward != 1 or found else []

    return [wrong for found in await asyncio.gather(*map(judged, tasks)) for wrong in found]


async def test_the_oracle_scores_1_and_adversarial_answers_0(some: ReasoningGym) -> None:
    assert await wrongly_judged(some, some.tasks("train", 2 * len(SOME))) == []


@pytest.mark.slow
async def test_so_it_is_for_every_dataset_that_has_a_reference_answer() -> None:
    environment = ReasoningGym()
    tasks = environment.tasks("test")
    assert len(tasks) == 200
    assert {task.row["dataset"] for task in tasks} == set(environment.package.settings)
    assert len(environment.package.settings) == 100
    assert await wrongly_judged(environment, tasks) == []


@pytest.mark.slow
async def test_the_datasets_without_a_reference_answer_are_these() -> None:
    environment = ReasoningGym(dataset=list(package.WITHOUT_REFERENCE))
    tasks = environment.tasks("train", 10)
    assert {task.row["dataset"] for task in tasks} == set(package.WITHOUT_REFERENCE)
    for task in tasks:
        assert task.row["expected_answer"] is None
        assert await environment.solve(None, task) is None
        assert (await environment.verify(None, task, said("<answer>I do not know.</answer>"))).reward == 0


async def test_difficulty_is_the_package_s_setting() -> None:
    config = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    environment = ReasoningGym(dataset={"chain_sum": config})
    for task in environment.tasks("train", 20):
        assert sum(character in "+-" for character in task.row["question"]) == 2
    assert environment.tasks("train", 5) != ReasoningGym(dataset="chain_sum").tasks("train", 5)


def test_the_size_bounds_the_tasks_of_all_splits_together() -> None:
    environment = ReasoningGym(dataset="chain_sum", size=20)
    assert sum(len(environment.tasks(split)) for split in ("train", "validation", "test")) == 20
    with pytest.raises(ConfigError, match="raise size"):
        environment.tasks("train", 21)


def test_other_seeds_make_other_tasks_of_the_same_splits() -> None:
    first, second = (ReasoningGym(dataset="gcd", seed=seed) for seed in (0, 1))
    asked = lambda e, split: {task.row["question"] for task in e.tasks(split, 50)}  # noqa: E731
    assert asked(first, "train") != asked(second, "train")
    assert not asked(first, "train") & asked(second, "test")


@pytest.mark.parametrize(
    "code", ["exec(chr(49))", "print(1)", "(1).real", "[0for a in 'aa']", "9**(9*9*99)", "1 if 1 else 0.x", "2**x**9"]
)
def test_code_is_no_expression_for_sympy(code: str) -> None:
    assert not is_plain(code)


def test_expressions_are() -> None:
    assert all(map(is_plain, ["(4 + 6) * 3 - 6", "x**2/2 - 3*sin(x) + C", "-5*x**3 + 2", "(3/2)*x^(1/2)"]))


async def test_a_task_of_other_options_is_a_failure_not_a_zero(some: ReasoningGym) -> None:
    task = ReasoningGym(dataset="gcd", seed=7).tasks("train", 1)[0]
    with pytest.raises(GymError, match="not the one of this index"):
        await some.verify(None, task, said("<answer>1</answer>"))
    with pytest.raises(GymError, match="not one of this environment"):
        await ReasoningGym(dataset="lcm").verify(None, task, said("<answer>1</answer>"))


async def test_partial_gives_the_package_s_score() -> None:
    whole, partial = ReasoningGym(dataset="gcd"), ReasoningGym(dataset="gcd", partial=True)
    task = whole.tasks("train", 1)[0]
    answer = said(f"<answer>{task.row['expected_answer']}{'x' * len(task.row['expected_answer'])}</answer>")
    assert (await whole.verify(None, task, answer)).reward == 0
    assert (await partial.verify(None, task, answer)).reward == 0.5  # the answer is half of the text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>not this <answer>3</answer>", "3"),
        ("<think><answer>1</answer></think>none", None),
        ("4", None),
        ("<answer> </answer>", None),
        (None, None),
    ],
)
def test_the_last_answer_counts(text: str | None, expected: str | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dataset": "chain_summ"}, "did you mean 'chain_sum'"),
        ({"dataset": {"chain_sum": {"min_term": 1}}}, "did you mean 'min_terms'"),
        ({"dataset": {"chain_sum": {"min_terms": 5, "max_terms": 2}}}, "rejects the settings"),
        ({"dataset": {"chain_sum": {"seed": 2}}}, "unknown setting 'seed'"),
        ({"dataset": []}, r"dataset is \[\]"),
        ({"dataset": "composite"}, "unknown dataset"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_refusals(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_environment("reasoning_gym", options)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"regimen-rl\[reasoning-gym\]"):
        load_environment("reasoning_gym")


def test_the_package_is_not_imported_here(some: ReasoningGym) -> None:
    assert some.tasks("train", 1)
    assert "reasoning_gym.factory" not in sys.modules
    assert Path(package.SCRIPT).is_file()

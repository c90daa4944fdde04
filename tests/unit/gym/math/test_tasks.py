"""The generated questions: enough of each kind, answered rightly by their own answers, by nothing else."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from prompts import asked

from regimen.errors import ConfigError
from regimen.gym.environment import SPLITS, Task
from regimen.gym.environments.math import Math
from regimen.gym.environments.math import tasks as module
from regimen.gym.environments.math.kinds import KINDS


@pytest.fixture(scope="module")
def environment() -> Math:
    return Math(num_workers=2)


@pytest.fixture(scope="module")
def tasks(environment: Math) -> list[Task]:
    return [task for split in SPLITS for task in environment.tasks(split)]


async def rewards(environment: Math, tasks: list[Task], say: Callable[[Task], str]) -> list[float]:
    def items(task: Task) -> list[dict[str, Any]]:
        content = [{"type": "output_text", "text": say(task)}]
        return [{"type": "message", "role": "assistant", "content": content}]

    found = await asyncio.gather(*(environment.verify(None, task, items(task)) for task in tasks))
    return [verdict.reward for verdict in found]


def test_there_are_hundreds_of_each_split_over_all_kinds(tasks: list[Task]) -> None:
    splits = Counter(task.row["split"] for task in tasks)
    assert splits == {"train": 400, "validation": 120, "test": 200}
    assert Counter(task.row["kind"] for task in tasks).keys() == KINDS.keys()
    assert len(KINDS) == 11
    assert len({asked(task) for task in tasks}) == len(tasks)


def test_seeds_give_other_questions_of_the_same_splits() -> None:
    seen = {split: {asked(task) for seed in (0, 1) for task in Math(seed=seed).tasks(split)} for split in SPLITS}
    assert len(seen["train"]) > 500
    assert not seen["train"] & (seen["test"] | seen["validation"])
    assert not seen["test"] & seen["validation"]


def test_there_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 200)
    with pytest.raises(ConfigError, match="there are no more validation tasks of kind"):
        Math().tasks("validation", 5000)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of train, validation, test"):
        Math().tasks("dev")  # type: ignore[arg-type]


NUMBERS = re.compile(r"-?\d+")


def solved(kind: str, text: str) -> str | None:
    """The answer, computed from the words of the question; None for kinds that other tests look at."""
    text = text.partition("\n\n")[0]
    numbers = [int(number) for number in NUMBERS.findall(text)]
    if kind == "arithmetic":
        a, operator, b = re.search(r"\$(\d+) (\S+) (\d+)\$", text).groups()  # type: ignore[union-attr]
        value = {"+": int(a) + int(b), "-": int(a) - int(b), r"\times": int(a) * int(b)}[operator]
        return str(value)
    if kind == "equations":
        a, sign, b, c = re.search(r"\$(\d+)[a-z] ([+-]) (\d+) = (\d+)\$", text).groups()  # type: ignore[union-attr]
        return str(Fraction(int(c) - int(f"{sign}{b}"), int(a)))
    if kind == "quadratics":
        match = re.search(r"x\^2(?: ([+-]) (\d*)x)? ([+-]) (\d+) = 0", text)
        assert match is not None
        middle = int(f"{match[1]}{match[2] or 1}") if match[1] else 0
        last = int(f"{match[3]}{match[4]}")
        root = math.isqrt(middle**2 - 4 * last)
        return rf"\{{{(-middle - root) // 2}, {(-middle + root) // 2}\}}"
    if kind == "counting":
        return str(numbers[0] * numbers[1] - numbers[2])
    if kind == "divisors":
        return str(math.gcd(*numbers) if "divisor" in text else math.lcm(*numbers))
    if kind == "percentages":
        share = Fraction(numbers[0] * numbers[1], 100)
        if "price" not in text:
            return str(share)
        share = Fraction(numbers[0] * numbers[1], 100)
        return str(numbers[0] + share if "goes up" in text else numbers[0] - share)
    return None


def test_answers_are_those_of_the_words(tasks: list[Task]) -> None:
    checked = 0
    for task in tasks:
        answer = solved(task.row["kind"], asked(task))
        if answer is not None:
            given = re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", task.row["expected_answer"])
            assert given == answer, task.row
            checked += 1
    assert checked > 350


def other(answer: str) -> str:
    """The answer with its last number changed."""
    match = list(re.finditer(r"\d+", answer))[-1]
    return f"{answer[: match.start()]}{int(match.group()) + 1}{answer[match.end() :]}"


def not_worked_out(template: str) -> Callable[[Task], str]:
    """The right answer, if it is one value, as a calculation; else nothing."""

    def say(task: Task) -> str:
        gold = task.row["expected_answer"]
        return "" if "," in gold else rf"\boxed{{{template.format(gold)}}}"

    return say


ADVERSARIES: dict[str, Callable[[Task], str]] = {
    "a wrong answer": lambda task: rf"\boxed{{{other(task.row['expected_answer'])}}}",
    "right in the reasoning": lambda task: f"It could be ${task.row['expected_answer']}$. \\boxed{{7777}}",
    "all candidates": lambda task: f"The answer is 7777 or ${task.row['expected_answer']}$.",
    "all candidates in boxes": lambda task: rf"\boxed{{7777}}, \boxed{{{task.row['expected_answer']}}}",
    "a list of candidates": lambda task: rf"\boxed{{7777, {task.row['expected_answer']}, 8888}}",
    "a sum": not_worked_out("{} + 0"),
    "a difference": not_worked_out("{} - 0"),
    "a product": not_worked_out(r"1 \times {}"),
    "a product of parentheses": not_worked_out("(1)({})"),
    "a quotient": not_worked_out(r"\frac{{2 \cdot {}}}{{2}}"),
    "a power": not_worked_out(r"({})^1"),
    "a root": not_worked_out(r"\sqrt{{1}} {}"),
    "denied": lambda task: f"The answer is not ${task.row['expected_answer']}$.",
    "never closed": lambda task: rf"\boxed{{{task.row['expected_answer']}",
    "only thought": lambda task: rf"<think>\boxed{{{task.row['expected_answer']}}}</think>",
    "asked back": lambda task: f"Is it ${task.row['expected_answer']}$?",
    "empty": lambda task: "",
    "an empty box": lambda task: rf"{task.row['expected_answer']} \boxed{{ }}",
    "the question": asked,
    "the question in a box": lambda task: rf"\boxed{{{asked(task)}}}",
    "the formula of the question": lambda task: rf"\boxed{{{''.join(re.findall(r'[$]([^$]*)[$]', asked(task))[:1])}}}",
}


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
async def test_the_oracle_scores_1_and_adversaries_0(every: int, environment: Math, tasks: list[Task]) -> None:
    """Every twelfth task of each kind in quick runs, all tasks in whole ones."""
    some = tasks[::every]
    assert {task.row["kind"] for task in some} == KINDS.keys()
    right = await rewards(environment, some, lambda task: f"So it is $\\boxed{{{task.row['expected_answer']}}}$.")
    assert [task.row for task, reward in zip(some, right, strict=True) if reward != 1.0] == []
    for name, say in ADVERSARIES.items():
        found = await rewards(environment, some, say)
        assert [(name, task.row) for task, reward in zip(some, found, strict=True) if reward != 0.0] == []

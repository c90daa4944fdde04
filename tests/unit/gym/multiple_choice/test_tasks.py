"""The generated questions: their right letter scores, and nothing else does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
from prompts import asked

from regimen.errors import ConfigError
from regimen.gym.environment import SPLITS, Task
from regimen.gym.environments.multiple_choice import MultipleChoice
from regimen.gym.environments.multiple_choice.tasks import DAYS, KINDS, LETTERS

ENVIRONMENT = MultipleChoice()
TASKS = [task for split in SPLITS for task in ENVIRONMENT.tasks(split)]


def options_of(task: Task) -> dict[str, str]:
    return {letter: text for option in task.row["options"] for letter, text in option.items()}


def right(task: Task) -> str:
    return task.row["expected_answer"]


def wrong(task: Task) -> str:
    return LETTERS[(LETTERS.index(right(task)) + 1) % len(LETTERS)]


async def reward(task: Task, text: str) -> float:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return (await ENVIRONMENT.verify(None, task, [item])).reward


def test_there_are_hundreds_of_each_split_over_all_kinds() -> None:
    assert Counter(task.row["split"] for task in TASKS) == {"train": 600, "validation": 120, "test": 200}
    assert Counter(task.row["kind"] for task in TASKS).keys() == KINDS.keys()
    letters = Counter(right(task) for task in TASKS)
    assert min(letters.values()) > 0.18 * len(TASKS)  # no letter is a good guess
    assert all(len(set(options_of(task).values())) == 4 for task in TASKS)


def test_seeds_share_the_splits() -> None:
    def questions(seed: int, split: str) -> set[str]:
        tasks = MultipleChoice(seed=seed).tasks(split)  # type: ignore[arg-type]
        return {task.row["kind"] + " ".join(sorted(options_of(task).values())) + asked(task)[:60] for task in tasks}

    assert not questions(0, "train") & questions(1, "test")
    assert questions(0, "train") != questions(1, "train")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of train, validation, test"):
        ENVIRONMENT.tasks("dev")  # type: ignore[arg-type]


def solved(task: Task) -> str:
    """The right option, found from the words of the question."""
    text, options = asked(task).splitlines()[0], list(options_of(task).values())
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    match task.row["kind"]:
        case "products":
            return str(numbers[0] * numbers[1])
        case "largest":
            return max(options, key=float)
        case "primes":
            return next(n for n in options if int(n) > 1 and all(int(n) % d for d in range(2, int(n))))
        case "weekdays":
            today = next(index for index, day in enumerate(DAYS) if f"Today is {day}" in text)
            return DAYS[(today + numbers[0]) % 7]
        case "alphabet":
            return sorted(options)[0]
        case _:
            small, large = re.search(r"How many (\w+) are \d+ (\w+)", text).groups()  # type: ignore[union-attr]
            size = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800,
                    "months": 1, "years": 12,
                    "grams": 1, "kilograms": 1000, "millimetres": 1, "centimetres": 10, "metres": 1000,
                    "kilometres": 1000000}  # fmt: skip
            return str(numbers[0] * size[large] // size[small])


def test_the_letters_are_those_of_the_words() -> None:
    for task in TASKS:
        assert options_of(task)[right(task)] == solved(task), task.row
        assert Counter(options_of(task).values())[solved(task)] == 1


ORACLES: list[Callable[[Task], str]] = [
    right,
    lambda task: f"({right(task)})",
    lambda task: f"Answer: {right(task)}",
    lambda task: rf"\boxed{{{right(task)}}}",
    lambda task: rf"So it is \boxed{{\text{{{right(task)}}}}}.",
    lambda task: f"{right(task)}. {options_of(task)[right(task)]}",
    lambda task: f"The answer is {options_of(task)[right(task)]}.",
    lambda task: f"{wrong(task)} looks good. But the answer is {right(task)}.",
]
ADVERSARIES: list[Callable[[Task], str]] = [
    lambda task: "",
    wrong,
    lambda task: rf"\boxed{{{wrong(task)}}}",
    lambda task: rf"The answer is {right(task)}. \boxed{{{wrong(task)}}}",
    lambda task: f"{right(task)} or {wrong(task)}",
    lambda task: rf"\boxed{{{right(task)}, {wrong(task)}}}",
    lambda task: rf"\boxed{{{wrong(task)}}} or \boxed{{{right(task)}}}",
    lambda task: f"The answer is {wrong(task)}, not {right(task)}.",
    lambda task: f"The answer is not {right(task)}.",
    lambda task: f"Is it {right(task)}?",
    lambda task: rf"\boxed{{{right(task)}",
    lambda task: f"<think>{right(task)}</think>",
    lambda task: "A B C D",
    lambda task: "A, B, C or D",
    lambda task: "\n".join(LETTERS),
    lambda task: "\n".join(f"{letter}. {text}" for letter, text in options_of(task).items()),
    lambda task: " ".join(f"\\boxed{{{letter}}}" for letter in LETTERS),
    asked,
]


async def test_oracles_score_1_on_all_tasks() -> None:
    for say in ORACLES:
        assert [(say(task), task.row) for task in TASKS if await reward(task, say(task)) != 1.0] == []


async def test_adversaries_score_0_on_all_tasks() -> None:
    for say in ADVERSARIES:
        assert [(say(task), task.row) for task in TASKS if await reward(task, say(task)) != 0.0] == []

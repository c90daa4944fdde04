"""Which letter a text chooses, and which texts choose none."""

from __future__ import annotations

from typing import Any

import pytest

from regimen.errors import ConfigError, GymError
from regimen.gym.environment import Task, Verdict
from regimen.gym.environments.multiple_choice import MultipleChoice
from regimen.gym.environments.multiple_choice.verify import extract_choice, letter_of

OPTIONS = {"A": "Paris", "B": "Rome", "C": "A boat", "D": "I am here"}
CHOICES = [
    ("C", "C"), ("(C)", "C"), ("C.", "C"), ("C) A boat", "C"), ("C. A boat", "C"), ("**C**", "C"), ("c", "C"),
    ("Answer: C", "C"), ("answer: c", "C"), ("Answer:\n\nB", "B"), ("Final answer: D. I am here", "D"),
    (r"\boxed{C}", "C"), (r"\boxed{\text{C}}", "C"), (r"$\boxed{\textbf{(C)}}$", "C"), (r"\boxed{C. A boat}", "C"),
    (r"\boxed{Rome}", "B"), (r"\boxed{A boat}", "C"), (r"No: \boxed{A}. Rather \boxed{B}.", "B"),
    ("The answer is C.", "C"), ("The correct answer is (C).", "C"), ("The answer is **C**: A boat", "C"),
    ("The correct answer is option C.", "C"), ("Option C is right.", "C"), ("I choose (C).", "C"),
    ("A is wrong, B is wrong. So the answer is C.", "C"), ("The answer is Rome.", "B"), ("The answer is A boat.", "C"),
    ("The answer is A.", "A"), ("<think>A</think>B", "B"), ("The answer is C, not A.", "C"),
    ("A. Rome would be nice.\nThe answer is B.", "B"),
]  # fmt: skip
NO_CHOICES = [
    # nothing, or no letter
    "", "I do not know.", "The answer is a fish.", "A fish swims.", "I think it is hard.", "Rome or Paris",
    # every letter is listed
    "A B C D", "A, B, C, D", "A\nB\nC\nD", r"\boxed{A, B}", r"\boxed{ABCD}", r"\boxed{A} or \boxed{B}",
    "(A) (B) (C) (D)", "A. Paris\nB. Rome\nC. A boat\nD. I am here", "options: A, B, C, D", "A) Paris B) Rome",
    # more than one is left
    "The answer is A or B.", "The answer is both A and C.", "The answer is A) Paris, B) Rome",
    "Options A and B are right",
    # denied, asked, thought, or no option
    "The answer is not C.", "Is it C?", "<think>C", r"Answer C. \boxed{E}", r"\boxed{E}", "E", "Answer: E",
    # a box that says nothing
    r"C \boxed{", r"\boxed{C", r"C \boxed{}", r"The answer is C. \boxed{?}",
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), CHOICES)
def test_choices(text: str, letter: str) -> None:
    assert extract_choice(text, "What is it?", OPTIONS) == letter


@pytest.mark.parametrize("text", NO_CHOICES)
def test_no_choices(text: str) -> None:
    assert extract_choice(text, "What is it?", OPTIONS) is None


def test_options_that_nobody_knows_are_all_letters() -> None:
    assert [extract_choice(text) for text in ("H", "The answer is J.", r"\boxed{B}", "A B")] == ["H", "J", "B", None]


def test_letters_of_data_sets() -> None:
    written = ["C", "(C)", "C.", "c", "Answer: C", r"\boxed{C}", "C) Paris", " C "]
    assert [letter_of(text) for text in written] == ["C"] * len(written)
    assert [letter_of(text) for text in ("Paris", "AB", "", "A or B", "A, B", "12")] == [None] * 6
    environment = MultipleChoice()
    assert environment.answer_fields("(C)") == {"expected_answer": "C"}
    with pytest.raises(ConfigError, match="the answer is 'Paris'; expected one letter"):
        environment.answer_fields("Paris")


async def verdict(row: dict[str, Any], text: str) -> Verdict:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    params = {"responses_create_params": {"input": "What is it?"}}
    return await MultipleChoice().verify(None, Task(0, {**params, **row}), [item])


async def test_verdicts() -> None:
    row = {"expected_answer": "C", "options": [{letter: text} for letter, text in OPTIONS.items()]}
    assert (await verdict(row, "The answer is C.")).reward == 1.0
    wrong = await verdict(row, "The answer is A.")
    assert (wrong.reward, wrong.metrics["extracted_answer"], wrong.metrics["expected_answer"]) == (0.0, "A", "C")
    assert (await verdict({"expected_answer": "(c)"}, "C")).reward == 1.0  # a row without its options


@pytest.mark.parametrize("expected", [None, 3, "", "Paris", "A or B"])
async def test_a_ground_truth_that_is_no_letter_is_a_failure(expected: object) -> None:
    with pytest.raises(GymError, match="expected_answer"):
        await verdict({"expected_answer": expected}, "A")

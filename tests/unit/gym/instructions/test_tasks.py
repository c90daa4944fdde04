"""The generated tasks: the perfect player scores 1 on all; filling, copying and every broken instruction score 0."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from prompts import asked

from regimen.errors import ConfigError, GymError
from regimen.gym.environment import SPLITS, Task, Verdict
from regimen.gym.environments.instructions import Instructions, bank
from regimen.gym.environments.instructions.prose import fault_of
from regimen.gym.environments.instructions.recipes import RECIPES

ENVIRONMENT = Instructions()
TASKS = [task for split in SPLITS for task in ENVIRONMENT.tasks(split)]


def item(text: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text}


async def judged(task: Task, text: str) -> Verdict:
    return await ENVIRONMENT.verify(None, task, [item(text)])


@pytest.fixture(scope="module")
def answers() -> dict[int, str]:
    """What the perfect player writes, by the place of the task in `TASKS`."""
    from regimen.gym.environments.instructions.checks import instruction
    from regimen.gym.environments.instructions.writer import written

    found: dict[int, str] = {}
    for index, task in enumerate(TASKS):
        given = zip(task.row["instruction_id_list"], task.row["kwargs"], strict=True)
        found[index] = written(task.row["subject"][0], [instruction(id, kwargs) for id, kwargs in given]) or ""
    return found


def test_there_are_hundreds_over_all_kinds() -> None:
    assert Counter(task.row["split"] for task in TASKS) == {"train": 540, "validation": 108, "test": 216}
    assert Counter(task.row["kind"] for task in TASKS) == {recipe.id: 20 + 4 + 8 for recipe in RECIPES}
    lengths = Counter(len(task.row["kwargs"]) for task in TASKS)
    assert set(lengths) == {1, 2, 3}
    assert min(lengths.values()) > 0.2 * len(TASKS)


def test_no_request_is_there_twice_and_seeds_share_the_splits() -> None:
    prompts = [asked(task) for task in TASKS]
    assert len(set(prompts)) == len(prompts)
    other = Instructions(seed=1)
    assert not {asked(task) for task in other.tasks("test")} & {asked(task) for task in ENVIRONMENT.tasks("train")}


async def test_the_perfect_player_scores_1_on_all_tasks(answers: dict[int, str]) -> None:
    for index, task in enumerate(TASKS):
        verdict = await judged(task, answers[index])
        assert verdict.reward == 1.0, (task.row, answers[index])
        assert set(verdict.components.values()) == {1.0}
        assert (await judged(task, f"<think>Hm.</think>\n{answers[index]}")).reward == 1.0


def quoted(task: Task) -> str:
    return " ".join(re.findall(r'"([^"]*)"', asked(task)))


def subject(task: Task) -> str:
    return task.row["subject"][0]


ADVERSARIES: list[Callable[[Task, str], str]] = [
    lambda task, right: "",
    lambda task, right: "I do not know.",
    lambda task, right: asked(task),
    lambda task, right: f"Sure! {asked(task)}",
    lambda task, right: f"{asked(task)}\n{asked(task)}",
    lambda task, right: asked(task).upper(),
    lambda task, right: asked(task).lower(),
    lambda task, right: f'"{asked(task)}"',
    lambda task, right: json.dumps({"text": asked(task)}),
    lambda task, right: f"{quoted(task)} {subject(task)} " * 30,
    lambda task, right: f"{subject(task)} {quoted(task)}. " * 5,
    lambda task, right: f"* {subject(task)}\n" * 3,
    lambda task, right: f"I like the {subject(task)}. " * 20,
    lambda task, right: json.dumps({subject(task): quoted(task)}),
    lambda task, right: '{"a":' * 1200 + f'"{subject(task)}"' + "}" * 1200,
    lambda task, right: f"<think>{right}</think>",
    lambda task, right: f"<think>{right}",
    lambda task, right: re.sub(subject(task), "thing", right, flags=re.IGNORECASE),
    lambda task, right: subject(task),
]


async def test_adversaries_score_0_on_all_tasks(answers: dict[int, str]) -> None:
    for number, say in enumerate(ADVERSARIES):
        scored = [
            (number, say(task, answers[index])[:200], task.row["instruction_id_list"])
            for index, task in enumerate(TASKS)
            if (await judged(task, say(task, answers[index]))).reward != 0.0
        ]
        assert scored == []


async def test_the_answer_to_another_request_scores_0(answers: dict[int, str]) -> None:
    for index, task in enumerate(TASKS):
        other = next(
            i % len(TASKS) for i in range(index + 1, 2 * len(TASKS)) if subject(TASKS[i % len(TASKS)]) != subject(task)
        )
        assert (await judged(task, answers[other])).reward == 0.0


def without(text: str, part: str) -> str:
    return re.sub(re.escape(part), "", text, flags=re.IGNORECASE)


def broken(id: str, given: dict[str, Any], text: str) -> str:
    """`text` so that it does not follow the instruction any more."""
    many = " ".join(f"This is what we saw on day {index} of it." for index in range(40))
    few = " ".join(text.split()[:3])
    relation = given.get("relation") or given.get("let_relation") or given.get("capital_relation")
    changes: dict[str, Callable[[], str]] = {
        "keywords:existence": lambda: without(text, given["keywords"][0]),
        "keywords:frequency": lambda: without(text, given["keyword"]),
        "keywords:forbidden_words": lambda: f"{text} {given['forbidden_words'][-1]}",
        "keywords:letter_frequency": lambda: (
            without(text, given["letter"]) if relation == "at least" else f"{text} {given['letter'] * 6}"
        ),
        "language:response_language": lambda: " ".join(bank.SENTENCES[:4]),
        "length_constraints:number_sentences": lambda: few if relation == "at least" else f"{text} {many}",
        "length_constraints:number_words": lambda: few if relation == "at least" else f"{text} {many}",
        "length_constraints:number_paragraphs": lambda: f"{text}\n***\nMore.",
        "length_constraints:nth_paragraph_first_word": lambda: f"{text}\n\nMore.",
        "detectable_content:number_placeholders": lambda: text.replace("[", "("),
        "detectable_content:postscript": lambda: without(text, given["postscript_marker"]),
        "detectable_format:number_bullet_lists": lambda: f"{text}\n* More.",
        "detectable_format:numbered_list": lambda: f"{text}\n9. More.",
        "detectable_format:constrained_response": lambda: text.replace("My answer is", "I say"),
        "detectable_format:number_highlighted_sections": lambda: text.replace("*", ""),
        "detectable_format:multiple_sections": lambda: text.replace("Section", "Part"),
        "detectable_format:json_format": lambda: f"Here it is: {text}",
        "detectable_format:title": lambda: text.replace("<<", "<"),
        "combination:two_responses": lambda: text.replace("******", "***"),
        "combination:repeat_prompt": lambda: f"Well. {text}",
        "startend:start_checker": lambda: f"Well. {text}",
        "startend:end_checker": lambda: f"{text} Or so.",
        "change_case:capital_word_frequency": lambda: text.lower() if relation == "at least" else f"{text}{' AB' * 8}",
        "change_case:english_capital": lambda: f"{text} and more",
        "change_case:english_lowercase": lambda: f"{text} And more",
        "punctuation:no_comma": lambda: f"{text}, and more",
        "startend:quotation": lambda: f"{text} and more",
    }
    return changes[id]()


async def test_every_broken_instruction_is_seen_on_all_tasks(answers: dict[int, str]) -> None:
    for index, task in enumerate(TASKS):
        for id, given in zip(task.row["instruction_id_list"], task.row["kwargs"], strict=True):
            verdict = await judged(task, broken(id, given, answers[index]))
            assert verdict.reward == 0.0, (id, given, answers[index])
            assert verdict.components[id] == 0.0, (id, given, answers[index])


PUBLIC = {
    "responses_create_params": {"input": "Write without commas and with the word sea."},
    "id": 7,
    "prompt": "Write without commas and with the word sea.",
    "instruction_id_list": ["punctuation:no_comma", "keywords:existence", "keywords:existence"],
    "kwargs": [{}, {"keywords": ["sea"], "num_words": None}, {"keywords": ["salt"]}],
}


async def test_rows_of_the_public_benchmark_are_judged_by_the_instructions_alone() -> None:
    task = Task(0, PUBLIC)
    verdict = await judged(task, "sea salt")
    assert verdict.reward == 1.0
    assert verdict.components == {
        "punctuation:no_comma": 1.0,
        "keywords:existence": 1.0,
        "keywords:existence#2": 1.0,
        "on_task": 1.0,
    }
    assert verdict.metrics["follow_all_instructions"] is True
    verdict = await judged(task, "the sea")
    assert verdict.reward == 0.0
    assert verdict.metrics["share_followed"] == pytest.approx(2 / 3)
    assert (await judged(Task(0, {**PUBLIC, "grading_mode": "fraction"}), "the sea")).reward == pytest.approx(2 / 3)
    assert (await judged(Task(0, {**PUBLIC, "kwargs": [None, *PUBLIC["kwargs"][1:]]}), "sea salt")).reward == 1.0
    assert await ENVIRONMENT.solve(None, task) is None


@pytest.mark.parametrize(
    "change, text",
    [
        ({"instruction_id_list": ["startend:begin"], "kwargs": [{}]}, "unknown instruction 'startend:begin'"),
        ({"kwargs": [{}]}, "3 instructions and 1 kwargs"),
        ({"instruction_id_list": [], "kwargs": []}, "0 instructions"),
        ({"instruction_id_list": "all"}, "the task row"),
        ({"kwargs": None}, "the task row"),
    ],
)
async def test_a_task_that_cannot_be_judged_fails_and_scores_nothing(change: dict[str, Any], text: str) -> None:
    with pytest.raises(GymError, match=text):
        await judged(Task(0, {**PUBLIC, **change}), "sea salt")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("The mill by the sea is what I like the most of all.", None),
        ("The mill is nice.", "too short"),
        ("The house by the sea is what I like the most of all.", "off the subject"),
        ("mill water stone wheel grain flour bread baker", "no prose"),
        ("The mill is here. " * 9, "repetition"),
        ("mill of mill and mill in mill to mill is mill with mill", "repetition"),
        ("Please write a long text about the mill that we saw.", "the prompt again"),
    ],
)
def test_what_is_no_answer(text: str, fault: str | None) -> None:
    assert fault_of(text, ["mill"], "Please write a long text about the mill that we saw.") == fault


def test_what_was_to_be_repeated_does_not_count() -> None:
    prompt = "Write about the mill. Repeat the first sentence."
    assert fault_of("Write about the mill.", ["mill"], prompt, "Write about the mill.") == "too short"
    answer = "Write about the mill. The mill by the sea is what I like the most of all."
    assert fault_of(answer, ["mill"], prompt, "Write about the mill.") is None


async def test_components_with_the_same_names_in_every_verdict() -> None:
    verdict = await Instructions(components="share").verify(None, Task(0, PUBLIC), [item("the sea")])
    assert verdict.components == {"followed": pytest.approx(2 / 3), "on_task": 1.0}
    with pytest.raises(ConfigError, match="components is 'all'"):
        Instructions(components="all")  # type: ignore[arg-type]

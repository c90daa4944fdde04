"""Requests with one to three instructions, generated from a seed.

In: a split, a count, a seed. Out: task rows in the same order at every call, each instruction in turn the first one.
A task is given only when the perfect player finds a text for it, so its instructions never contradict each other. A
task belongs to a split by the hash of what it asks, whatever the seed or the wording, so splits share no task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from regimen.gym.environment import Split
from regimen.gym.environments.instructions import bank
from regimen.gym.environments.instructions.checks import Instruction, instruction
from regimen.gym.environments.instructions.prose import fault_of
from regimen.gym.environments.instructions.recipes import RECIPES, Recipe, wording_key
from regimen.gym.environments.instructions.writer import written
from regimen.gym.generated import in_turn

NUM_TASKS: dict[Split, int] = {"train": 540, "validation": 108, "test": 216}
MAX_ATTEMPTS = 5000
MAX_DRAWS = 200
SHARES = (0.3, 0.4, 0.3)  # of tasks with one, two and three instructions
LANGUAGE = "language:response_language"
REPEAT = "combination:repeat_prompt"


class Request(msgspec.Struct, frozen=True):
    """What is asked: the prompt, its subject, its instructions, and `key`: what is asked, without the wording."""

    kind: str
    prompt: str
    subject: str
    instructions: list[Instruction]
    key: str


def task_rows(split: Split, num_tasks: int, seed: int) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; raises `ConfigError` when there are no more."""
    generator = requests(split, seed)
    return [task_row(next(generator), split) for _ in range(num_tasks)]


def task_row(request: Request, split: Split) -> dict[str, Any]:
    """A NeMo Gym task row, with the instructions as its instruction_following server has them."""
    return {
        "responses_create_params": {"input": [{"type": "message", "role": "user", "content": request.prompt}]},
        "prompt": request.prompt,
        "instruction_id_list": [one.id for one in request.instructions],
        "kwargs": [one.parameters for one in request.instructions],
        "subject": [request.subject],
        "kind": request.kind,
        "split": split,
        "agent_ref": {"name": "instructions"},
    }


def requests(split: Split, seed: int) -> Iterator[Request]:
    """Requests of `split`, none twice, the instructions in turn."""
    return in_turn("instructions", KINDS, split, seed, MAX_ATTEMPTS)


def request(generator: random.Random, recipe: Recipe) -> Request:
    """A request whose first instruction is the recipe's."""
    for _ in range(MAX_DRAWS):
        found = _drawn(generator, recipe)
        if found is not None:
            return found
    raise AssertionError(f"no text follows {recipe.id} in {MAX_DRAWS} draws")


def _drawn(generator: random.Random, recipe: Recipe) -> Request | None:
    recipes = _chosen(generator, recipe)
    subject = generator.choice(bank.NAMES if any(one.id == LANGUAGE for one in recipes) else bank.SUBJECTS)
    genre = generator.choice(bank.GENRES)
    article = "" if subject in bank.NAMES else "an " if subject[0] in "aeiou" else "a "
    asked = f"Write {genre} about {article}{subject}."
    instructions: list[Instruction] = []
    sentences = [asked]
    for one in recipes:
        parameters, wording = one.draw(generator)
        instructions.append(instruction(one.id, {"prompt_to_repeat": asked} if one.id == REPEAT else parameters))
        sentences.append(wording)
    text = written(subject, instructions)
    prompt = " ".join(sentences)
    if text is None or fault_of(text, [subject], prompt, repeated_part(instructions)):
        return None
    key = " | ".join([subject, genre, *sorted(wording_key(one.id, one.parameters) for one in instructions)])
    return Request(recipe.id, prompt, subject, instructions, key)


def repeated_part(instructions: list[Instruction]) -> str:
    """The part of the prompt that an answer is told to begin with; "" where there is none."""
    return next((one.parameters["prompt_to_repeat"] for one in instructions if one.id == REPEAT), "")


def _chosen(generator: random.Random, first: Recipe) -> list[Recipe]:
    """The recipe and up to two others that go with it and with each other."""
    wanted = generator.choices((1, 2, 3), SHARES)[0]
    chosen = [first]
    for other in generator.sample(RECIPES, len(RECIPES)):
        if len(chosen) == wanted:
            break
        if all(other.goes_with(one) for one in chosen):
            chosen.append(other)
    return chosen


KINDS: dict[str, Callable[[random.Random], Request]] = {
    recipe.id: partial(request, recipe=recipe) for recipe in RECIPES
}

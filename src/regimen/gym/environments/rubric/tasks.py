"""Short texts to write, generated from a seed, each with criteria and an answer that meets them.

In: a split, a count, a seed. Out: task rows, in the same order at every call, the kinds in turn. A task belongs to a
split by the hash of its facts, so splits share none. Every criterion names the fact it asks for in quotation marks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from regimen.gym.environment import Split
from regimen.gym.generated import in_turn

NUM_TASKS: dict[Split, int] = {"train": 400, "validation": 120, "test": 200}
MAX_ATTEMPTS = 5000
NAMES = ("Ada", "Bruno", "Chen", "Dina", "Emeka", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kofi", "Lena")
THINGS = (
    "blue lamp",
    "oak table",
    "green kettle",
    "wool blanket",
    "glass vase",
    "garden chair",
    "desk clock",
    "red bicycle",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
PLACES = ("the library", "room 12", "the town hall", "the harbour office", "the old station", "the school yard")
DISHES = ("lentil soup", "apple pie", "rice salad", "fish stew", "corn bread", "plum cake")
Facts = list[tuple[str, str, float]]  # name of the criterion, its text, its weight


class Writing(msgspec.Struct, frozen=True):
    """A text to write."""

    kind: str
    text: str
    criteria: Facts
    answer: str

    @property
    def key(self) -> str:
        """What is asked."""
        return self.text


def apologies(generator: random.Random) -> Writing:
    """A late delivery."""
    name, thing, day = generator.choice(NAMES), generator.choice(THINGS), generator.choice(DAYS)
    share = f"{generator.choice((5, 10, 15, 20, 25))}%"
    return Writing(
        "apologies",
        f"A customer called {name} has waited too long for a {thing}. Write a letter of two or three sentences that "
        f"says sorry, gives {day} as the new day of delivery and takes {share} off the price.",
        [
            ("apology", 'Says "sorry" for the delay, in its own words', 2.0),
            ("name", f'Speaks to the customer as "{name}"', 1.0),
            ("thing", f'Names what was ordered, the "{thing}"', 1.0),
            ("day", f'Promises delivery on "{day}"', 2.0),
            ("discount", f'Offers "{share}" off the price', 2.0),
        ],
        f"Dear {name}, we are sorry that you are still waiting for your {thing}. It will reach you on {day}. "
        f"For the delay we take {share} off the price.",
    )


def invitations(generator: random.Random) -> Writing:
    """An invitation to a meeting."""
    name, place, day = generator.choice(NAMES), generator.choice(PLACES), generator.choice(DAYS)
    hour = f"{generator.randint(9, 19)}:{generator.choice(('00', '15', '30', '45'))}"
    return Writing(
        "invitations",
        f"Invite {name} to a meeting of the reading circle: it is on {day} at {hour}, in {place}. Two sentences, and "
        "ask for a short reply.",
        [
            ("name", f'Speaks to the guest as "{name}"', 1.0),
            ("day", f'Gives the day, "{day}"', 2.0),
            ("hour", f'Gives the hour, "{hour}"', 2.0),
            ("place", f'Gives the place, "{place}"', 2.0),
            ("reply", 'Asks for a "short reply"', 1.0),
        ],
        f"Dear {name}, the reading circle meets on {day} at {hour} in {place}, and we hope to see you there. "
        "Please send a short reply.",
    )


def menus(generator: random.Random) -> Writing:
    """A notice of what there is to eat."""
    first, second = generator.sample(DISHES, 2)
    day, price = generator.choice(DAYS), f"{generator.randint(3, 12)} euros"
    return Writing(
        "menus",
        f"Write a notice for a canteen: on {day} there is {first}, then {second}, together for {price}.",
        [
            ("day", f'Names the day, "{day}"', 1.0),
            ("first", f'Names the first dish, "{first}"', 2.0),
            ("second", f'Names the second dish, "{second}"', 2.0),
            ("price", f'Names the price, "{price}"', 2.0),
        ],
        f"{day}: we serve {first} and, after it, {second}. Both cost {price}. Enjoy your meal!",
    )


KINDS: dict[str, Callable[[random.Random], Writing]] = {kind.__name__: kind for kind in (apologies, invitations, menus)}


def task_rows(split: Split, num_tasks: int, seed: int) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; raises `ConfigError` when there are no more."""
    return [_row(writing, split) for writing in islice(in_turn("rubric", KINDS, split, seed, MAX_ATTEMPTS), num_tasks)]


def _row(writing: Writing, split: Split) -> dict[str, Any]:
    """A NeMo Gym task row: the prompt, and the verifier's fields."""
    return {
        "responses_create_params": {"input": [{"type": "message", "role": "user", "content": writing.text}]},
        "rubric": [{"name": name, "text": text, "weight": weight} for name, text, weight in writing.criteria],
        "reference_answer": writing.answer,
        "kind": writing.kind,
        "split": split,
        "agent_ref": {"name": "rubric"},
    }

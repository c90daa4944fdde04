"""Questions with four options, generated from a seed.

In: a split, a count, a seed. Out: task rows, in the same order at every call, the kinds one after the other, the right
letter by chance. A question belongs to a split by the hash of what it asks, whatever the seed, so splits share none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from regimen.gym.environment import Split
from regimen.gym.generated import in_turn

NUM_TASKS: dict[Split, int] = {"train": 600, "validation": 120, "test": 200}
MAX_ATTEMPTS = 5000
LETTERS = "ABCD"
INSTRUCTION = "Answer with the letter of the right option in \\boxed{}."

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NOUNS = (
    "anchor", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "market", "needle", "orange", "pencil", "quartz", "river", "saddle", "tunnel", "uncle", "valley",
    "window", "yellow", "zipper", "apple", "basket", "copper", "dragon", "eagle",
)  # fmt: skip
UNITS = (
    ("minutes", "hours", 60), ("seconds", "minutes", 60), ("hours", "days", 24), ("days", "weeks", 7),
    ("months", "years", 12), ("grams", "kilograms", 1000), ("metres", "kilometres", 1000),
    ("centimetres", "metres", 100), ("millimetres", "centimetres", 10),
)  # fmt: skip


class Choice(msgspec.Struct, frozen=True):
    """A question, the right option, three wrong ones, and `key`: what is asked, without the order."""

    kind: str
    text: str
    right: str
    wrong: list[str]
    key: str


def task_rows(split: Split, num_tasks: int, seed: int) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; raises `ConfigError` when there are no more."""
    generator = choices(split, seed)
    return [task_row(next(generator), split, seed) for _ in range(num_tasks)]


def task_row(choice: Choice, split: Split, seed: int) -> dict[str, Any]:
    """A NeMo Gym task row: the prompt, the options, the verifier's fields."""
    place = random.Random(f"multiple_choice/{seed}/{choice.key}").randrange(len(LETTERS))
    texts = list(choice.wrong)
    texts.insert(place, choice.right)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True))
    content = f"{choice.text}\n{listed}\n\n{INSTRUCTION}"
    return {
        "responses_create_params": {"input": [{"type": "message", "role": "user", "content": content}]},
        "options": [{letter: text} for letter, text in zip(LETTERS, texts, strict=True)],
        "expected_answer": LETTERS[place],
        "kind": choice.kind,
        "split": split,
        "agent_ref": {"name": "multiple_choice"},
    }


def choices(split: Split, seed: int) -> Iterator[Choice]:
    """Questions of `split`, none twice, the kinds in turn."""
    return in_turn("multiple_choice", KINDS, split, seed, MAX_ATTEMPTS)


def _numbers(right: int, near: list[int], generator: random.Random) -> list[str]:
    """Three wrong numbers, the likely mistakes first."""
    wrong = [number for number in dict.fromkeys(near) if number != right and number >= 0][:3]
    while len(wrong) < 3:
        number = right + generator.choice((-1, 1)) * generator.randint(1, 9)
        if number != right and number >= 0 and number not in wrong:
            wrong.append(number)
    generator.shuffle(wrong)
    return [str(number) for number in wrong]


def products(generator: random.Random) -> Choice:
    """A product, with the mistakes that people make."""
    a, b = sorted((generator.randint(11, 49), generator.randint(3, 19)))
    wrong = _numbers(a * b, [a * b + 10, a * b - a, a + b], generator)
    return Choice("products", f"What is {a} times {b}?", str(a * b), wrong, f"{a} * {b}")


def largest(generator: random.Random) -> Choice:
    """The largest of four decimals, which are of different lengths."""
    whole = generator.randint(0, 20)
    tenths = generator.sample(range(10), 4)
    longer = generator.sample(range(4), 2)
    values = [f"{whole}.{t}{generator.randint(1, 9) if i in longer else ''}" for i, t in enumerate(tenths)]
    right = max(values, key=float)
    wrong = [value for value in values if value != right]
    return Choice("largest", "Which number is the largest?", right, wrong, "largest " + " ".join(sorted(values)))


def primes(generator: random.Random) -> Choice:
    """The prime among numbers that look like primes."""
    numbers = [n for n in range(11, 400) if n % 2 and n % 5]
    is_prime = {n: all(n % d for d in range(3, 20, 2)) or n in (11, 13, 17, 19) for n in numbers}
    right = generator.choice([n for n in numbers if is_prime[n]])
    wrong = generator.sample([n for n in numbers if not is_prime[n]], 3)
    key = f"prime {right} {sorted(wrong)}"
    return Choice("primes", "Which of these is a prime number?", str(right), [str(n) for n in wrong], key)


def weekdays(generator: random.Random) -> Choice:
    """The day of the week after some days."""
    today, passed = generator.randrange(7), generator.randint(8, 99)
    right = DAYS[(today + passed) % 7]
    wrong = generator.sample([day for day in DAYS if day != right], 3)
    text = f"Today is {DAYS[today]}. What day of the week is it {passed} days from now?"
    return Choice("weekdays", text, right, wrong, f"{today} + {passed}")


def alphabet(generator: random.Random) -> Choice:
    """The first word in alphabetical order."""
    words = generator.sample(NOUNS, 4)
    right = min(words)
    wrong = [word for word in words if word != right]
    return Choice("alphabet", "Which word comes first in the alphabet?", right, wrong, " ".join(sorted(words)))


def units(generator: random.Random) -> Choice:
    """A quantity in a smaller unit."""
    small, large, factor = generator.choice(UNITS)
    number = generator.randint(2, 40)
    right = number * factor
    wrong = _numbers(right, [number * 10 * (factor // 10 or 1) + factor, number + factor, right - factor], generator)
    return Choice("units", f"How many {small} are {number} {large}?", str(right), wrong, f"{number} {large} {small}")


KINDS: dict[str, Callable[[random.Random], Choice]] = {
    kind.__name__: kind for kind in (products, largest, primes, weekdays, alphabet, units)
}

"""What environments with generated tasks share: the split of a question, and new questions of a split.

In: the environment's name, generators of questions by kind, a split, a seed. Out: questions, in the same order at every
call, none twice. A question belongs to a split by the hash of its key, what it asks, whatever the seed or the wording;
so splits share none. Refuses: more questions than a kind has, an unknown split.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from regimen.errors import ConfigError
from regimen.gym.environment import Split, Task


class Keyed(Protocol):
    """A question that knows what it asks."""

    @property
    def key(self) -> str:
        """Equal for questions that ask the same."""
        ...


Made = TypeVar("Made", bound=Keyed)
Kinds = Mapping[str, Callable[[random.Random], Made]]


def share_of(purpose: str, key: str) -> float:
    """A number in [0, 1) that depends on purpose and key alone."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{key}".encode()).digest()[:4], "big") / 2**32


def split_of(environment: str, key: str) -> Split:
    """The split of a question: 60% train, 15% validation, 25% test, by hash."""
    share = share_of(environment, key)
    return "train" if share < 0.60 else "validation" if share < 0.75 else "test"


def generators_of(environment: str, kinds: Collection[str], split: Split, seed: int) -> dict[str, random.Random]:
    """A source of chance for each kind."""
    return {kind: random.Random(f"{environment}/{seed}/{split}/{kind}") for kind in kinds}


def in_turn(environment: str, kinds: Kinds[Made], split: Split, seed: int, max_attempts: int) -> Iterator[Made]:
    """Questions of `split` without end, none twice, the kinds in turn."""
    generators = generators_of(environment, kinds, split, seed)
    seen: set[str] = set()
    while True:
        for kind, make in kinds.items():
            question = new_question(environment, split, make, generators[kind], seen, max_attempts)
            if question is None:
                raise ConfigError(f"there are no more {split} tasks of kind {kind!r}", fix="ask for fewer tasks")
            yield question


def new_question(
    environment: str,
    split: Split,
    make: Callable[[random.Random], Made],
    generator: random.Random,
    seen: set[str],
    max_attempts: int,
) -> Made | None:
    """A question of `split` whose key is not among the `seen` ones, which take it up; None after so many attempts."""
    for _ in range(max_attempts):
        question = make(generator)
        if question.key not in seen and split_of(environment, question.key) == split:
            seen.add(question.key)
            return question
    return None


def first_tasks(
    split: Split,
    num_tasks: int | None,
    sizes: Mapping[Split, int],
    rows: Callable[[Split, int], list[dict[str, Any]]],
) -> list[Task]:
    """The first `num_tasks` tasks of `split`; without a number, as many as `sizes` says."""
    if split not in sizes:
        raise ConfigError(f"unknown split {split!r}", expected=f"one of {', '.join(sizes)}")
    count = sizes[split] if num_tasks is None else num_tasks
    return [Task(index, row) for index, row in enumerate(rows(split, count))]

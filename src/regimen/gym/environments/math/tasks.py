"""Questions of mathematics, generated from a seed.

In: a split, a count, a seed. Out: task rows, in the same order at every call, the kinds one after the other. A question
belongs to a split by the hash of what it asks, whatever the seed or the wording, so splits share no question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regimen.gym.environment import Split
from regimen.gym.environments.math.kinds import KINDS, Question
from regimen.gym.generated import in_turn

NUM_TASKS: dict[Split, int] = {"train": 400, "validation": 120, "test": 200}
MAX_ATTEMPTS = 5000
INSTRUCTION = "Put the final answer in \\boxed{}."


def task_rows(split: Split, num_tasks: int, seed: int) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; raises `ConfigError` when there are no more."""
    generator = questions(split, seed)
    return [task_row(next(generator), split) for _ in range(num_tasks)]


def task_row(question: Question, split: Split) -> dict[str, Any]:
    """A NeMo Gym task row: the prompt, and the verifier's fields."""
    content = f"{question.text}\n\n{INSTRUCTION}"
    return {
        "responses_create_params": {"input": [{"type": "message", "role": "user", "content": content}]},
        "expected_answer": question.answer,
        "worked_out": True,
        "kind": question.kind,
        "split": split,
        "agent_ref": {"name": "math"},
    }


def questions(split: Split, seed: int) -> Iterator[Question]:
    """Questions of `split`, none twice, the kinds in turn."""
    return in_turn("math", KINDS, split, seed, MAX_ATTEMPTS)

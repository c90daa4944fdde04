"""The multiple choice environment: questions with lettered options, judged by the letter that is chosen."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from regimen.errors import ConfigError, GymError
from regimen.gym.answers import final_text, question_of
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.environments.multiple_choice.tasks import NUM_TASKS, task_rows
from regimen.gym.environments.multiple_choice.verify import extract_choice, letter_of
from regimen.gym.generated import first_tasks


class MultipleChoice(Environment):
    """A question, options with letters, one of them right.

    Option: `seed` of the generated tasks. Splits are the same for all seeds.
    """

    name = "multiple_choice"
    max_turns = 1

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.task_seed = seed

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` questions of `split`."""
        return first_tasks(split, num_tasks, NUM_TASKS, partial(task_rows, seed=self.task_seed))

    def answer_fields(self, answer: str) -> dict[str, Any]:
        """The right letter."""
        letter = letter_of(answer)
        if letter is None:
            raise ConfigError(f"the answer is {answer[:80]!r}", expected="one letter, like C, (C) or Answer: C")
        return {"expected_answer": letter}

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]]:  # noqa: ARG002
        """The right letter."""
        return [message(f"Answer: {task.row['expected_answer']}")]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """1 when the right letter is chosen, else 0; raises `GymError` for a task without one."""
        row = task.row
        given = row.get("expected_answer")
        expected = letter_of(given) if isinstance(given, str) else None
        if expected is None:
            raise GymError(f"expected_answer is {given!r}", expected="the right letter")
        text = final_text(output)
        chosen = extract_choice(text, question_of(row), _options(row)) if text is not None else None
        return Verdict(
            reward=1.0 if chosen == expected else 0.0,
            metrics={
                "expected_answer": expected,
                "extracted_answer": chosen,
                "kind": row.get("kind"),
                "split": row.get("split"),
            },
        )


def _options(row: dict[str, Any]) -> dict[str, str]:
    """The options by letter: `[{"A": "..."}, ...]` as NeMo Gym has them; {} where the row does not tell."""
    given = row.get("options")
    listed = cast("list[Any]", given) if isinstance(given, list) else []
    return {str(k): str(v) for o in listed if isinstance(o, dict) for k, v in cast("dict[Any, Any]", o).items()}

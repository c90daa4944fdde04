"""The math environment: questions with one right answer, compared as mathematics by the library math-verify."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from typing import Any

from regimen.errors import ConfigError, GymError
from regimen.gym.answers import final_text, question_of
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.environments.math.judges import Judges
from regimen.gym.environments.math.spelling import is_readable, is_worked_out, repeats, said, spelled, words
from regimen.gym.environments.math.tasks import NUM_TASKS, task_rows
from regimen.gym.environments.math.verify import extract_answer, gold_of
from regimen.gym.generated import first_tasks

IMPLEMENTATIONS = ("hf_math_verify",)


class Math(Environment):
    """Questions of mathematics; the answer stands in a box, or the text states it.

    Options: `num_workers`, how many processes compare answers (at most one for each core); `math_verify_impl`, which
    comparison; `seed` of the generated tasks. Splits are the same for all options.
    """

    name = "math"
    max_turns = 1

    def __init__(self, *, num_workers: int = 8, math_verify_impl: str = "hf_math_verify", seed: int = 0) -> None:
        super().__init__()
        if type(num_workers) is not int or num_workers < 1:
            raise ConfigError(f"num_workers is {num_workers!r}", where="env.math", expected="a number of at least 1")
        if math_verify_impl not in IMPLEMENTATIONS:
            raise ConfigError(
                f"math_verify_impl is {math_verify_impl!r}, which is not implemented in this build",
                where="env.math.math_verify_impl",
                expected=" or ".join(IMPLEMENTATIONS),
                fix=f"set env.math.math_verify_impl={IMPLEMENTATIONS[0]}",
            )
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "the package math-verify is not installed",
                where="environment 'math'",
                fix="pip install 'regimen-rl[train]'",
            )
        self.task_seed = seed
        self.judges = Judges(min(num_workers, os.cpu_count() or 1))

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` questions of `split`."""
        return first_tasks(split, num_tasks, NUM_TASKS, partial(task_rows, seed=self.task_seed))

    def answer_fields(self, answer: str) -> dict[str, Any]:
        """The right answer, in LaTeX, plain text, a box, or behind GSM8K's `####`."""
        gold = gold_of(answer)
        if not is_readable(gold):
            raise ConfigError(f"the answer is {answer[:80]!r}", expected="mathematics of at most 1,000 characters")
        return {"expected_answer": gold}

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]]:  # noqa: ARG002
        """The right answer in a box."""
        return [message(f"The answer is \\boxed{{{task.row['expected_answer']}}}.")]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """1 when the answer given equals the right one, else 0; raises `GymError` where nobody can tell."""
        row = task.row
        expected = row.get("expected_answer")
        if not isinstance(expected, str) or not expected.strip():
            raise GymError(f"expected_answer is {expected!r}", expected="the right answer as text")
        question = question_of(row)
        text = final_text(output)
        answer = extract_answer(text, question) if text is not None else None
        gold, is_right = gold_of(expected), False
        if answer is not None and (is_worked_out(answer, gold) or not row.get("worked_out")):
            is_right = await self._is_right(gold, answer, question)
        return Verdict(
            reward=1.0 if is_right else 0.0,
            metrics={
                "expected_answer": expected,
                "extracted_answer": None if answer is None else answer[:200],
                "kind": row.get("kind"),
                "split": row.get("split"),
            },
        )

    async def _is_right(self, gold: str, answer: str, question: str) -> bool:
        if not is_readable(gold):
            raise GymError(f"the ground truth {gold[:80]!r} cannot be read", fix="mend the ground truth of this task")
        expected_words = words(gold)
        if expected_words is not None:
            return said(answer) == expected_words
        if not is_readable(answer) or repeats(answer, question, gold):
            return False
        return (await self.judges.judge(spelled(gold), spelled(answer))).equal

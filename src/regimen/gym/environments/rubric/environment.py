"""The rubric environment: answers judged by weighted criteria, by a model at an OpenAI-compatible endpoint."""

from __future__ import annotations

import importlib.util
import math
import os
from functools import partial
from typing import Any, cast

import msgspec

from regimen.errors import ConfigError, GymError
from regimen.gym.answers import final_text, question_of, squeezed, without_thinking
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.environments.rubric.judge import MAX_ANSWER, Criterion, Judge, JudgeSettings
from regimen.gym.environments.rubric.tasks import NUM_TASKS, task_rows
from regimen.gym.generated import first_tasks

KEY_VARIABLE = "REGIMEN_JUDGE_KEY"


class Rubric(Environment):
    """Short letters and notes, each with criteria that a judge checks.

    Options: `judge_url` and `judge_model`, an OpenAI-compatible endpoint as in `http://HOST:PORT/v1` and the name of
    its model; `max_tries` and `seconds` of a judgement; `concurrency`, judgements at once; `seed` of the generated
    tasks. The endpoint's key stands in the variable REGIMEN_JUDGE_KEY and nowhere else.
    """

    name = "rubric"
    max_turns = 1

    def __init__(
        self,
        *,
        judge_url: str = "",
        judge_model: str = "",
        max_tries: int = 3,
        seconds: float = 100.0,
        concurrency: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not judge_url or not judge_model:
            raise ConfigError(
                "there is no judge",
                where="environment 'rubric'",
                expected="its options judge_url and judge_model",
                fix="set judge_url to an OpenAI-compatible endpoint (http://HOST:PORT/v1), judge_model to its model",
            )
        for option, value, least in (
            ("max_tries", max_tries, 1),
            ("seconds", seconds, 1),
            ("concurrency", concurrency, 1),
        ):
            if isinstance(value, bool) or not value >= least:
                raise ConfigError(f"{option} is {value!r}", where="environment 'rubric'", expected=f"at least {least}")
        if importlib.util.find_spec("httpx") is None:
            raise ConfigError(
                "the package httpx is not installed",
                where="environment 'rubric'",
                fix="pip install 'regimen-rl[serve]'",
            )
        self.task_seed = seed
        self.judge = Judge(
            JudgeSettings(
                url=judge_url,
                model=judge_model,
                key=os.environ.get(KEY_VARIABLE),
                max_tries=max_tries,
                seconds=float(seconds),
                concurrency=concurrency,
            )
        )

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` tasks of `split`."""
        return first_tasks(split, num_tasks, NUM_TASKS, partial(task_rows, seed=self.task_seed))

    def answer_fields(self, answer: str) -> dict[str, Any]:
        """One criterion: the answer agrees with the right one."""
        if not answer.strip():
            raise ConfigError("the answer is empty", expected="what a right answer says")
        text = f"The answer comes to the same result as this reference answer, and to no other: {answer}"
        return {"rubric": [{"name": "right", "text": text, "weight": 1.0}]}

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]]:  # noqa: ARG002
        """The reference answer of the row."""
        return [message(task.row["reference_answer"])]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """The share of the weights that is met; raises `GymError` when the judge fails."""
        criteria = criteria_of(task.row)
        text = without_thinking(final_text(output) or "").strip()
        question = question_of(task.row)
        is_answer = bool(squeezed(text)) and squeezed(text) not in squeezed(question)
        met = dict.fromkeys((criterion.name for criterion in criteria), False)
        if is_answer:
            readable = text.encode("utf-8", "replace").decode()
            met = await self.judge.judge(question, readable[:MAX_ANSWER], criteria)
        return Verdict(
            reward=reward_of(criteria, met) if is_answer else 0.0,
            components={name: float(value) for name, value in met.items()},
            metrics={
                "criteria_met": sum(met.values()),
                "num_criteria": len(criteria),
                "was_judged": is_answer,
                "answer_was_cut": len(text) > MAX_ANSWER,
                "kind": task.row.get("kind"),
                "split": task.row.get("split"),
            },
        )


def criteria_of(row: dict[str, Any]) -> list[Criterion]:
    """The criteria of a task row; raises `GymError` for a row that cannot be judged."""
    expected = 'rubric: [{"name": ..., "text": ..., "weight": ...}, ...] with a positive weight'
    try:
        given = [{"weight": 1.0, **criterion} for criterion in cast("list[dict[str, Any]]", row.get("rubric") or [])]
        criteria = msgspec.convert(given, list[Criterion])
    except (TypeError, msgspec.ValidationError) as error:
        raise GymError(f"the rubric cannot be read: {error}", expected=expected) from None
    if not any(criterion.weight > 0 for criterion in criteria):
        raise GymError("the rubric has no positive weight", expected=expected)
    if len({criterion.name for criterion in criteria}) != len(criteria) or not all(
        criterion.name and math.isfinite(criterion.weight) for criterion in criteria
    ):
        raise GymError("names of the rubric are empty or the same, or a weight is no number", expected=expected)
    return criteria


def reward_of(criteria: list[Criterion], met: dict[str, bool]) -> float:
    """The met weights over the positive ones, from 0 to 1."""
    reached = math.fsum(criterion.weight for criterion in criteria if met[criterion.name])
    possible = math.fsum(criterion.weight for criterion in criteria if criterion.weight > 0)
    return min(1.0, max(0.0, reached / possible))

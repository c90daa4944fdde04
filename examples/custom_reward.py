"""A reward of your own for an environment that exists: right answers count less when the calculator was not used.

    regimen collect --environment examples/custom_reward.py:HonestCalculator --model MODEL --output rollouts.jsonl
    regimen train quickstart/grpo data.train.env_name=examples/custom_reward.py:HonestCalculator

Tasks, tools and the reading of the answer stay the environment's own; only `verify` is new. The parts of the reward
appear in each row's `reward_components`, and a reward that needs another service may await it here.
"""

from __future__ import annotations

from typing import Any

from regimen.gym.environment import Task, Verdict
from regimen.gym.environments.calculator.environment import Calculator


class HonestCalculator(Calculator):
    """The calculator environment; a right answer is worth `guessed` when no call of the tool stands behind it."""

    def __init__(self, *, guessed: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.guessed = guessed

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        """The environment's verdict, with its reward weighed."""
        verdict = await super().verify(session, task, output)
        has_called = any(item.get("type") == "function_call" for item in output)
        weight = 1.0 if has_called else self.guessed
        components = {"right": verdict.reward, "weight": weight}
        return Verdict(verdict.reward * weight, components, verdict.metrics)

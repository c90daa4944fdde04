"""The calculator environment: arithmetic questions, one tool, a verifier that reads the final answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from regimen.errors import ConfigError
from regimen.gym.conformance import message, tool_call
from regimen.gym.environment import Environment, Split, Task, ToolError, Verdict
from regimen.gym.environments.calculator.expression import ExpressionError, calculate
from regimen.gym.environments.calculator.tasks import DEFAULT_HINT, DEFAULT_MIX, NUM_TASKS, check_mix, task_rows
from regimen.gym.environments.calculator.verify import verdict_of
from regimen.gym.generated import first_tasks


class Calculator(Environment):
    """ "What is 47 × 23?" with `calculator(expression)`.

    Options: `seed` of the generated tasks; `mix`, shares of the kinds of question; `hint`, the share of questions that
    say to use the calculator. Splits are the same for all options.
    """

    name = "calculator"
    max_turns = 4

    def __init__(self, *, seed: int = 0, mix: Mapping[str, float] | None = None, hint: float = DEFAULT_HINT) -> None:
        super().__init__()
        if not 0 <= hint <= 1:
            raise ConfigError(f"hint is {hint!r}", expected="a share from 0 to 1")
        self.hint = hint
        self.task_seed = seed
        self.mix = check_mix(DEFAULT_MIX if mix is None else mix)

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` questions of `split`."""
        rows = partial(task_rows, seed=self.task_seed, mix=self.mix, hint=self.hint)
        return first_tasks(split, num_tasks, NUM_TASKS, rows)

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:  # noqa: ARG002
        """The value of `arguments["expression"]`, or a `ToolError` that says what the calculator cannot read."""
        if name != "calculator":
            raise ToolError(f"Error: unknown tool '{name}'; use calculator")
        expression = arguments.get("expression")
        if not isinstance(expression, str):
            raise ToolError('Error: calculator takes {"expression": "12 + 7"}')
        try:
            return calculate(expression)
        except ExpressionError as error:
            raise ToolError(f"Error: {error}") from error

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """1 when the final assistant message states the right number, else 0."""
        return verdict_of(task.row, output)

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]]:
        """Call the calculator with the number that is expected, and state what it says."""
        arguments = {"expression": task.row["expected_answer"]}
        result = await self.call(session, "calculator", arguments)
        returned = {"type": "function_call_output", "call_id": "call_1", "output": result}
        return [tool_call("calculator", arguments), returned, message(f"The answer is {result}.")]

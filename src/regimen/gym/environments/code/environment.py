"""The code environment: the model writes a function, hidden tests call it in a sandbox, and judge it outside."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, cast

from regimen.errors import ConfigError, GymError
from regimen.gym.answers import final_text, without_thinking
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.environments.code.sandbox import Called, Sandbox, SandboxLimits
from regimen.gym.environments.code.tasks import NUM_TASKS, Test, task_rows
from regimen.gym.environments.code.verify import code_of, equal
from regimen.gym.generated import first_tasks


class Code(Environment):
    """Functions to write in Python.

    Options: `num_workers`, how many functions are tested at once (at most one for each core); `seconds`, the processor
    time of all calls of one function; `memory_mb`, its memory; `seed` of the generated tasks. Needs bubblewrap.
    """

    name = "code"
    max_turns = 1

    def __init__(self, *, num_workers: int = 8, seconds: int = 5, memory_mb: int = 512, seed: int = 0) -> None:
        super().__init__()
        given = {"num_workers": (num_workers, 1), "seconds": (seconds, 1), "memory_mb": (memory_mb, 64)}
        for option, (value, least) in given.items():
            if type(value) is not int or value < least:
                where = f"environment 'code', {option}"
                raise ConfigError(f"is {value!r}", where=where, expected=f"a whole number of at least {least}")
        self.task_seed = seed
        limits = SandboxLimits(cpu_seconds=seconds, wall_seconds=6.0 * seconds, memory_bytes=memory_mb << 20)
        self.sandbox = Sandbox(min(num_workers, os.cpu_count() or 1), limits)

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` functions of `split`."""
        return first_tasks(split, num_tasks, NUM_TASKS, partial(task_rows, seed=self.task_seed))

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]]:  # noqa: ARG002
        """The solution of the row."""
        return [message(f"```python\n{task.row['solution']}```")]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """1 when every test gives what is expected, else 0; raises `GymError` when the sandbox fails."""
        tests, function = _tests_of(task.row)
        code = code_of(without_thinking(final_text(output) or ""), function)
        if code is None:
            return _verdict(task, [], tests, "no code")
        # What no text holds, like half a character, no interpreter reads.
        readable = code.encode("utf-8", "replace").decode()
        run = await self.sandbox.run(readable, function, [test["args"] for test in tests])
        return _verdict(task, run.calls, tests, run.ended)


def _tests_of(row: dict[str, Any]) -> tuple[list[Test], str]:
    """The tests and the function's name; raises `GymError` for a row without them."""
    tests, function = row.get("tests"), row.get("function")
    if not isinstance(function, str) or not function.isidentifier():
        raise GymError(f"function is {function!r}", expected="the name of the function to test")
    if not isinstance(tests, list) or not tests:
        raise GymError("there are no tests", expected='tests: [{"args": [...], "expected": ...}, ...]')
    for index, test in enumerate(cast("list[Any]", tests)):
        if not isinstance(test, dict) or "expected" not in test or not isinstance(test.get("args"), list):  # pyright: ignore[reportUnknownMemberType]
            raise GymError("is no test", where=f"tests[{index}]", expected='{"args": [...], "expected": ...}')
    return cast("list[Test]", tests), function


def _verdict(task: Task, calls: list[Called], tests: list[Test], ended: str) -> Verdict:
    """The reward: all tests or nothing. More answers than calls are no answers at all."""
    if ended == "more answers than calls":
        calls = []
    passed = sum(
        called.error is None and equal(called.value, test["expected"])
        for called, test in zip(calls, tests, strict=False)
    )
    first_error = next((called.error for called in calls if called.error is not None), None)
    return Verdict(
        reward=float(passed == len(tests)),
        components={"all_tests": float(passed == len(tests)), "tests": passed / len(tests)},
        metrics={
            "tests_passed": passed,
            "num_tests": len(tests),
            "ended": ended,
            "first_error": first_error,
            "kind": task.row.get("kind"),
            "split": task.row.get("split"),
        },
    )

"""The functions that are asked for: the solution passes, and nothing that is no solution does."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from prompts import asked

from regimen.errors import ConfigError, GymError
from regimen.gym.conformance import message
from regimen.gym.environment import SPLITS, Task
from regimen.gym.environments.code import Code
from regimen.gym.environments.code import tasks as module
from regimen.gym.environments.code.kinds import KINDS
from regimen.gym.environments.code.verify import code_of, equal


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    rows = [row for split in SPLITS for row in module.task_rows(split, module.NUM_TASKS[split], 0)]
    return [Task(index, row) for index, row in enumerate(rows)]


def block(code: str) -> str:
    return f"Here it is:\n\n```python\n{code}\n```\n"


async def verdicts(environment: Code, tasks: list[Task], say: Callable[[Task], str]) -> list[Any]:
    return list(await asyncio.gather(*(environment.verify(None, task, [message(say(task))]) for task in tasks)))


def test_there_are_hundreds_of_each_split_over_all_kinds(tasks: list[Task]) -> None:
    assert Counter(task.row["split"] for task in tasks) == {"train": 400, "validation": 120, "test": 200}
    assert {task.row["kind"] for task in tasks} == KINDS.keys()
    assert len({asked(task) for task in tasks}) == len(tasks)
    assert min(Counter(task.row["kind"] for task in tasks).values()) > 100


def test_the_prompt_shows_examples_and_hides_the_tests(tasks: list[Task]) -> None:
    for task in tasks:
        assert len(task.row["tests"]) == 10
        assert len({json.dumps(test["expected"], sort_keys=True) for test in task.row["tests"]}) >= 4
        assert asked(task).count("==") == 2
        for test in task.row["tests"]:
            assert f"({test['args'][0]!r}) ==" not in asked(task)
        assert task.row["solution"] not in asked(task)


def hard_coded(task: Task) -> str:
    """The examples of the prompt, and for the rest what the first of them gives."""
    lines = [line for line in asked(task).splitlines() if "==" in line and line.startswith(task.row["function"])]
    known = [line.removeprefix(task.row["function"]).split(") == ") for line in lines]
    pairs = ", ".join(f"({arguments[1:]}, {result})" for arguments, result in known)
    return block(
        f"def {task.row['function']}(x):\n    for a, r in [{pairs}]:\n        if a == x: return r\n    return r"
    )


def function(body: str, top: str = "") -> Callable[[Task], str]:
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return lambda task: block(f"{top}\ndef {task.row['function']}(x):\n{lines}")


ANYTHING = """
class Anything(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
"""
TEXTS: dict[str, Callable[[Task], str]] = {
    "nothing": lambda task: "",
    "words": lambda task: "The function is easy to write.",
    "the question": asked,
    "the question in a block": lambda task: block(asked(task)),
    "no block": lambda task: task.row["solution"],
    "a block that never ends": lambda task: f"```python\n{task.row['solution']}",
    "a thought": lambda task: f"<think>{block(task.row['solution'])}</think>",
    "another name": lambda task: block(task.row["solution"].replace(f"def {task.row['function']}", "def other")),
    "too much": lambda task: block(task.row["solution"] + "#" * 30_000),
}
CODES: dict[str, Callable[[Task], str]] = {
    "None": function("return None"),
    "the argument": function("return x"),
    "the examples by heart": hard_coded,
    "equal to everything": function("return Anything(0)", ANYTHING),
    "sys.exit": function("import sys\nsys.exit(0)"),
    "leaving": function("import os\nos._exit(0)"),
    "leaving at once": function("return 1", "import os\nos._exit(0)"),
    "printed results": function("for _ in range(10): print('{\"value\": true}', flush=True)\nreturn True"),
    "written results": function(
        "import os\nfor d in range(1, 10):\n    try: os.write(d, b'{\"passed\": true}\\n' * 10)\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "a checker of its own": function(
        "import sys, json\nmain = sys.modules['__main__']\nmain.answer_of = lambda *a: json.dumps({'value': True})\n"
        'json.dumps = lambda *a, **k: \'{"value": true, "passed": true, "reward": 1}\'\nreturn True'
    ),
    "the frames above": function(
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for v in frame.f_locals.values():\n        if isinstance(v, dict) and 'expected' in str(v): return v\n"
        "    frame = frame.f_back\nreturn None"
    ),
}


async def test_texts_that_hold_no_function_score_0_on_all_tasks(environment: Code, tasks: list[Task]) -> None:
    for name, say in TEXTS.items():
        found = await verdicts(environment, tasks, say)
        wrong = [task.row for task, verdict in zip(tasks, found, strict=True) if verdict.reward != 0.0]
        assert wrong == [], name
        assert {verdict.metrics["ended"] for verdict in found} <= {"no code", "finished"}


@pytest.mark.parametrize("every", [1000, pytest.param(1, marks=pytest.mark.slow)])
async def test_the_solution_scores_1_and_cheats_0(every: int, environment: Code, tasks: list[Task]) -> None:
    """A task of each kind in quick runs, all tasks in whole ones."""
    some = [task for kind in KINDS for task in [t for t in tasks if t.row["kind"] == kind][::every]]
    solved = await verdicts(environment, some, lambda task: block(task.row["solution"]))
    assert [task.row for task, verdict in zip(some, solved, strict=True) if verdict.reward != 1.0] == []
    assert all(verdict.components == {"all_tests": 1.0, "tests": 1.0} for verdict in solved)
    for name, say in CODES.items():
        found = await verdicts(environment, some, say)
        assert [(name, t.row) for t, verdict in zip(some, found, strict=True) if verdict.reward != 0.0] == []


async def test_some_tests_passed_is_a_component_and_no_reward(environment: Code) -> None:
    tests = [{"args": [n], "expected": n * n} for n in range(4)]
    task = Task(0, {"responses_create_params": {"input": "q"}, "function": "f", "tests": tests})
    (verdict,) = await verdicts(environment, [task], lambda _: block("def f(n):\n    return n"))
    assert (verdict.reward, verdict.components) == (0.0, {"all_tests": 0.0, "tests": 0.5})  # 0 and 1
    assert (verdict.metrics["tests_passed"], verdict.metrics["ended"]) == (2, "finished")
    (verdict,) = await verdicts(environment, [task], lambda _: block("def f(n):\n    return 1 / 0"))
    assert verdict.metrics["first_error"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"tests": [{"args": [], "expected": 1}]}, "function is None"),
        ({"function": "f; import os", "tests": [{"args": [], "expected": 1}]}, "name of the function"),
        ({"function": "f"}, "there are no tests"),
        ({"function": "f", "tests": []}, "there are no tests"),
        ({"function": "f", "tests": [{"args": 3, "expected": 1}]}, r"tests\[0\]: is no test"),
        ({"function": "f", "tests": [{"args": []}]}, r"tests\[0\]: is no test"),
        ({"function": "f", "tests": [7]}, r"tests\[0\]: is no test"),
    ],
)
async def test_rows_without_tests_are_failures(environment: Code, row: dict[str, Any], error: str) -> None:
    with pytest.raises(GymError, match=error):
        await environment.verify(None, Task(0, row), [message(block("def f(): return 1"))])


@pytest.mark.parametrize("options", [{"seconds": 0}, {"memory_mb": 63}, {"num_workers": "2"}, {"seconds": 1.5}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="whole number of at least"):
        Code(**options)


def test_the_last_block_that_defines_the_function_counts() -> None:
    first, second = "def f(x):\n    return 1", "def f(x):\n    return 2"
    assert code_of(f"```python\n{first}\n```\nor\n```py\n{second}\n```", "f") == f"{second}\n"
    assert code_of(f"```\n{first}\n```\n```python\nprint(f(2))\n```", "f") == f"{first}\n"
    assert code_of(f"```python\n{first}\n```", "g") is None
    assert code_of("```python\nx = 'def f('\n```", "f") is None
    assert code_of("```\n" * 99_999, "f") is None


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (1, 1, True), (1.0, 1, True), (1, True, False), (True, 1, False), (True, True, True), (None, None, True),
        (0, None, False), ("1", 1, False), ([1, 2], [1, 2], True), ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False), ({"a": 1, "b": 2}, {"a": 1}, False), ([], {}, False), ({}, [], False),
        (0.1 + 0.2, 0.3, True), (0.3001, 0.3, False), (10**400, 1.5, False), (10**20 + 1, 10**20, False),
        (1e300, 10**400, False), ("a", ["a"], False), (float("nan"), float("nan"), False),
    ],
)  # fmt: skip
def test_equality(found: Any, expected: Any, same: bool) -> None:
    assert equal(found, expected) is same

"""Functions to write, generated from a seed, each with examples that are shown and tests that are not.

In: a split, a count, a seed. Out: task rows, in the same order at every call, the kinds in turn. A question belongs to
a split by the hash of its solution, so splits share none. A question that hard-coded examples, one constant or the
argument itself would answer is not asked.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from regimen.gym.environment import Split
from regimen.gym.environments.code.kinds import KINDS, Question
from regimen.gym.generated import in_turn

NUM_TASKS: dict[Split, int] = {"train": 400, "validation": 120, "test": 200}
NUM_EXAMPLES = 2
NUM_TESTS = 10
MIN_DIFFERENT = 4
MAX_ATTEMPTS = 5000
INSTRUCTION = (
    "Answer with one Python code block that defines the function. Only the standard library is there; nothing can be "
    "read, written or asked over a network, and no process or thread be started."
)
Test = dict[str, Any]


def task_rows(split: Split, num_tasks: int, seed: int) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; raises `ConfigError` when there are no more."""
    found = _asked(split, seed)
    return [next(found) for _ in range(num_tasks)]


def _asked(split: Split, seed: int) -> Iterator[dict[str, Any]]:
    for question in in_turn("code", KINDS, split, seed, MAX_ATTEMPTS):
        cases = _cases(question)
        if cases is not None:
            yield _row(question, split, cases)


def _cases(question: Question) -> list[Test] | None:
    """Different calls with their results, the examples first; None where too many results are the same."""
    generator = random.Random(f"code/{question.key}")
    cases: dict[str, Test] = {}
    while len(cases) < NUM_EXAMPLES + NUM_TESTS:
        arguments = question.inputs(generator)
        case = {"args": arguments, "expected": question.apply(*json.loads(json.dumps(arguments)))}
        cases.setdefault(json.dumps(arguments), case)
    found = list(cases.values())
    hidden = found[NUM_EXAMPLES:]
    results = {json.dumps(case["expected"], sort_keys=True) for case in hidden}
    changed = sum(case["expected"] != case["args"][0] for case in hidden)
    return found if len(results) >= MIN_DIFFERENT and changed >= MIN_DIFFERENT else None


def _row(question: Question, split: Split, cases: list[Test]) -> dict[str, Any]:
    """A NeMo Gym task row: the prompt, and the verifier's fields."""
    shown = "\n".join(
        f"{question.name}({', '.join(map(repr, case['args']))}) == {case['expected']!r}"
        for case in cases[:NUM_EXAMPLES]
    )
    content = f"{question.text}\n\nFor example:\n{shown}\n\n{INSTRUCTION}"
    return {
        "responses_create_params": {"input": [{"type": "message", "role": "user", "content": content}]},
        "function": question.name,
        "tests": cases[NUM_EXAMPLES:],
        "solution": question.source,
        "kind": question.kind,
        "split": split,
        "agent_ref": {"name": "code"},
    }

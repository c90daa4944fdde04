"""Requests for tools, generated from a seed.

In: a split, a count, a seed. Out: task rows, in the same order at every call, the kinds in turn. A task belongs to a
split by the hash of what it asks, whatever the seed, the kind and the tools at hand, so splits share no request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from regimen.gym.environment import Split
from regimen.gym.environments.tool_choice.catalog import TOOLS, Asked, Tool
from regimen.gym.generated import in_turn

NUM_TASKS: dict[Split, int] = {"train": 600, "validation": 120, "test": 200}
MAX_ATTEMPTS = 5000
NUM_TOOLS = 5  # at hand in a task
NO_TOOL = "No tool fits."
MISSING = "Missing: {}"
SYSTEM = (
    "Do what is asked with the tools: make every call that is needed, once each, and no other. Leave out arguments "
    "that the request does not mention. If no tool can do what is asked, call none and answer only with: No tool fits. "
    "If an argument that a tool requires is not given, call none and answer only with its name, like this: "
    "Missing: name"
)


class Request(msgspec.Struct, frozen=True):
    """What is asked, the tools at hand, the calls that are right or else the answer; `key` is what is asked."""

    kind: str
    text: str
    tools: list[str]
    calls: list[dict[str, Any]]
    answer: str | None
    key: str


def task_rows(split: Split, num_tasks: int, seed: int) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; raises `ConfigError` when there are no more."""
    generator = requests(split, seed)
    return [task_row(next(generator), split) for _ in range(num_tasks)]


def task_row(request: Request, split: Split) -> dict[str, Any]:
    """A NeMo Gym task row: the prompt, the tools, and the verifier's fields."""
    messages = [("system", SYSTEM), ("user", request.text)]
    return {
        "responses_create_params": {
            "input": [{"type": "message", "role": role, "content": content} for role, content in messages],
            "tools": [TOOLS[name].definition() for name in request.tools],
            "parallel_tool_calls": True,
        },
        "expected_calls": request.calls,
        "expected_answer": request.answer,
        "kind": request.kind,
        "split": split,
        "agent_ref": {"name": "tool_choice"},
    }


def requests(split: Split, seed: int) -> Iterator[Request]:
    """Requests of `split`, none twice, the kinds in turn."""
    return in_turn("tool_choice", KINDS, split, seed, MAX_ATTEMPTS)


def _request(
    generator: random.Random, kind: str, asked: list[tuple[Tool, Asked]], answer: str | None = None
) -> Request:
    """A request for the calls asked for, each of which is made unless there is an answer instead."""
    needed = {tool.name for tool, _ in asked}
    others = generator.sample([name for name in TOOLS if name not in needed], NUM_TOOLS)
    at_hand = [*needed, *others[: NUM_TOOLS - len(needed)]] if answer != NO_TOOL else others
    at_hand.sort()
    generator.shuffle(at_hand)
    calls = [{"name": tool.name, "arguments": one.arguments} for tool, one in asked] if answer is None else []
    key = " | ".join(sorted(f"{tool.name} {json.dumps(one.arguments, sort_keys=True)}" for tool, one in asked))
    return Request(kind, " ".join(one.text for _, one in asked), at_hand, calls, answer, key)


def _drawn(generator: random.Random, lacking: bool = False) -> tuple[Tool, Asked]:
    tool = TOOLS[generator.choice(list(TOOLS))]
    return tool, tool.ask(generator, lacking)


def single(generator: random.Random) -> Request:
    """One call."""
    return _request(generator, "single", [_drawn(generator)])


def same(generator: random.Random) -> Request:
    """Two or three different calls of one tool."""
    tool, first = _drawn(generator)
    asked = [first]
    while len(asked) < generator.randint(2, 3):
        other = tool.ask(generator, False)
        if all(other.arguments != one.arguments for one in asked):
            asked.append(other)
    return _request(generator, "same", [(tool, one) for one in asked])


def several(generator: random.Random) -> Request:
    """Calls of two to four tools."""
    names = generator.sample(list(TOOLS), generator.randint(2, 4))
    return _request(generator, "several", [(TOOLS[name], TOOLS[name].ask(generator, False)) for name in names])


def none_fits(generator: random.Random) -> Request:
    """A request for a tool that is not at hand."""
    return _request(generator, "none_fits", [_drawn(generator)], NO_TOOL)


def missing(generator: random.Random) -> Request:
    """A request that lacks an argument."""
    tool, asked = _drawn(generator, lacking=True)
    return _request(generator, "missing", [(tool, asked)], MISSING.format(asked.lacking))


KINDS: dict[str, Callable[[random.Random], Request]] = {
    kind.__name__: kind for kind in (single, same, several, none_fits, missing)
}

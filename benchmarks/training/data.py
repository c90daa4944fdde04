"""The data of the benchmark: calculator conversations as an oracle would have them, the same for every contestant.

In: a renderer and a count. Out: token ids with the trained spans. Every prompt begins with the same system message,
tool and example exchanges, as in the calculator's rollouts, and ends with a question of its own.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

from regimen.gym.environments.calculator.expression import calculate
from regimen.gym.environments.calculator.tasks import DEFAULT_MIX, Question, questions, task_row
from regimen.rollouts.messages import chat_tools, input_messages
from regimen.tokens.template import Renderer


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids and the half-open spans of them that are trained."""

    ids: list[int]
    spans: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt: the right call of the tool and a wrong one."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def conversations(renderer: Renderer, count: int) -> list[Conversation]:
    """Whole episodes: question, call, tool output, answer. Both assistant turns are trained."""
    result: list[Conversation] = []
    for question in _questions(count):
        messages, tools = _prompt(question)
        value = calculate(question.expression)
        answers = [
            _call(question.expression),
            {"role": "tool", "tool_call_id": "call_1", "name": "calculator", "content": value},
            {"role": "assistant", "content": f"The answer is {value}."},
        ]
        (sequence,) = renderer.conversation([*messages, *answers], tools, first_trained=len(messages))
        result.append(Conversation(list(sequence.ids), [(start, stop) for start, stop in sequence.spans]))
    return result


def pairs(renderer: Renderer, count: int) -> list[Pair]:
    """The call that answers the question, and the call that answers the next one."""
    wanted = _questions(count + 1)
    result: list[Pair] = []
    for question, other in itertools.pairwise(wanted):
        messages, tools = _prompt(question)
        sides: list[list[int]] = []
        for expression in (question.expression, other.expression):
            (sequence,) = renderer.conversation([*messages, _call(expression)], tools, first_trained=len(messages))
            ((start, stop),) = sequence.spans
            sides.append(list(sequence.ids[start:stop]))
        result.append(Pair(renderer.prompt_ids(messages, tools), *sides))
    return result


def prompts(renderer: Renderer, count: int) -> list[list[int]]:
    """Prompt ids, each ending with the header of the assistant's turn."""
    return [renderer.prompt_ids(*_prompt(question)) for question in _questions(count)]


def reward(ids: list[int]) -> float:
    """A reward that costs nothing and differs between completions."""
    return float(sum(ids) % 97)


def _questions(count: int) -> list[Question]:
    return list(itertools.islice(questions("train", 0, DEFAULT_MIX), count))


def _prompt(question: Question) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    params = task_row(question, "train")["responses_create_params"]
    return input_messages(params), chat_tools(params)


def _call(expression: str) -> dict[str, Any]:
    function = {"name": "calculator", "arguments": json.dumps({"expression": expression})}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }

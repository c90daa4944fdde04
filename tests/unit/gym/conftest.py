"""A renderer whose tokens are words, and a counting environment, for tests of the gym."""

from __future__ import annotations

import json
from typing import Any

import pytest

from regimen.generation.fake import FakeGeneration
from regimen.gym.environment import Environment, Task, ToolError, Verdict

STOP = "<end>"


class WordRenderer:
    """One id per word. Calls are words of the form `call:name:{"json"}`, `broken:` marks a malformed one."""

    fingerprint = "words"
    template_fingerprint = "template"

    def __init__(self) -> None:
        self.words: list[str] = []
        self.stop_ids = tuple(self.encode(STOP))

    def encode(self, text: str) -> list[int]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(self.words[i] for i in ids)

    def prompt_ids(self, messages: Any, tools: Any) -> list[int]:
        lines = [f"[{message['role']}] {message['content'] or ''}" for message in messages]
        return self.encode(" ".join([*(t["function"]["name"] for t in tools), *lines, "[assistant]"]))

    def continuation_ids(self, assistant: Any, appended: Any, tools: Any) -> list[int]:
        return self.encode(
            " ".join([*(f"[{message['role']}] {message['content']}" for message in appended), "[assistant]"])
        )

    def parse_assistant(self, ids: Any) -> dict[str, Any]:
        words = [word for word in self.decode(ids).split() if word != STOP]
        calls = [word.split(":", 2) for word in words if word.startswith("call:")]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": " ".join(word for word in words if not word.startswith("call:")),
            "malformed_calls": sum(word.startswith("broken:") for word in words),
        }
        if calls:
            message["tool_calls"] = [
                {"id": "call_x", "type": "function", "function": {"name": name, "arguments": arguments}}
                for _, name, arguments in calls
            ]
        return message


class Counting(Environment):
    """The model is to say the task's number; the tool `double` doubles one, refuses negative ones, breaks at 13."""

    name = "counting"
    max_turns = 3

    def __init__(self, reward: float = 1.0) -> None:
        super().__init__()
        self.reward = reward
        self.open_sessions = 0

    def tasks(self, split: Any, num_tasks: int | None = None) -> list[Task]:
        tool = {"type": "function", "name": "double", "parameters": {"type": "object", "properties": {}}}
        return [
            Task(i, {"responses_create_params": {"input": f"say {i}", "tools": [tool]}, "wanted": str(i)})
            for i in range(num_tasks or 3)
        ]

    async def seed(self, task: Task) -> Any:
        self.open_sessions += 1
        return {"calls": 0}

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
        session["calls"] += 1
        value = arguments["value"]
        if value < 0:
            raise ToolError("Error: negative")
        if value == 13:
            raise RuntimeError("unlucky")
        return str(2 * value)

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        last = output[-1]
        right = last["type"] == "message" and last["content"][0]["text"] == task.row["wanted"]
        return Verdict(self.reward * right, {"right": float(right)}, {"calls": session["calls"], "label": "x"})

    async def close(self, session: Any) -> None:
        self.open_sessions -= 1


@pytest.fixture
def renderer() -> WordRenderer:
    return WordRenderer()


@pytest.fixture
def environment() -> Counting:
    return Counting()


@pytest.fixture
def say(renderer: WordRenderer) -> Any:
    """Answers in words -> a generation that gives them in order; a word list may hold exceptions."""

    def script(*answers: Any) -> FakeGeneration:
        ids = [a if isinstance(a, Exception) else renderer.encode(f"{a} {STOP}") for a in answers]
        return FakeGeneration(ids)

    return script


@pytest.fixture
def call() -> Any:
    """The word that calls a tool."""

    def word(name: str = "double", **arguments: Any) -> str:
        return f"call:{name}:{json.dumps(arguments, separators=(',', ':'))}"

    return word


@pytest.fixture
def parrot(renderer: WordRenderer) -> FakeGeneration:
    """A generation that always says the last number of the prompt."""

    def answer(prompt_ids: list[int], sampling: Any, seed: int) -> list[int]:
        number = [word for word in renderer.decode(prompt_ids).split() if word.isdigit()][-1]
        return renderer.encode(f"{number} {STOP}")

    return FakeGeneration(answer)

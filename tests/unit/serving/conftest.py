"""A renderer of letters, engines over scripted generations, and clients that need no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import servers

from regimen.generation.base import Sampling
from regimen.generation.fake import FakeGeneration
from regimen.gym.environment import Environment, Task, ToolError, Verdict
from regimen.serving.engine import Engine, Served
from regimen.serving.guard import Guard, ServerLimits
from regimen.tokens.parsing import parse_assistant_text

STOP = 1
BASE = "http://127.0.0.1"


class LetterRenderer:
    """One id per character (its code point); 1 ends a turn. `user:hi|assistant:` is how a conversation looks."""

    fingerprint = "letters"
    template_fingerprint = "plain"
    stop_ids = (STOP,)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids)

    def prompt_ids(self, messages: Any, tools: Any) -> list[int]:
        said = "".join(f"{message['role']}:{message['content']}|" for message in messages)
        return self.encode("".join(f"<{tool['function']['name']}>" for tool in tools) + said + "assistant:")

    def continuation_ids(self, assistant: Any, appended: Any, tools: Any) -> list[int]:
        return self.encode("".join(f"|{message['role']}:{message['content']}" for message in appended) + "|assistant:")

    def parse_assistant(self, ids: Any) -> dict[str, Any]:
        return parse_assistant_text(self.decode([i for i in ids if i != STOP]))


class Memory(Environment):
    """The model is to say the word that the tool `remember` was given; sessions count."""

    name = "memory"
    max_turns = 3
    TOOL = {
        "type": "function",
        "name": "remember",
        "description": "Keep a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    }

    def __init__(self) -> None:
        super().__init__()
        self.num_open = 0

    def tasks(self, split: Any, num_tasks: int | None = None) -> list[Task]:
        params = {"input": "say it", "tools": [self.TOOL]}
        return [Task(i, {"responses_create_params": params, "secret": f"s{i}"}) for i in range(num_tasks or 3)]

    async def seed(self, task: Task) -> Any:
        self.num_open += 1
        return {"words": [], "secret": task.row["secret"]}

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
        if name != "remember":
            raise ToolError(f"Error: unknown tool '{name}'")
        if arguments["word"] == "explode":
            raise RuntimeError("boom /etc/secret")
        session["words"].append(arguments["word"])
        return " ".join(session["words"])

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        said = output[-1]["content"][0]["text"] if output else ""
        right = float(session["words"][-1:] == [said])
        return Verdict(right, {"right": right}, {"num_words": len(session["words"]), "secret": task.row["secret"]})

    async def close(self, session: Any) -> None:
        self.num_open -= 1


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def call_text(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def says(*texts: str) -> FakeGeneration:
    """A generation that gives these answers in order, each ended by the stop token."""
    return FakeGeneration([[*map(ord, text), STOP] for text in texts])


def engine_of(generation: Any, *, load_weights: Any = None, **changes: Any) -> Engine:
    sampling = Sampling(max_new_tokens=50, stop_ids=(STOP,))
    served = {"name": "letters", "max_length": 500, "vocabulary_size": 1000, "sampling": sampling, **changes}
    return Engine(generation, LetterRenderer(), Served(**served), load_weights)


def client_of(app: Any, limits: ServerLimits | None = None, token: str | None = None) -> httpx.AsyncClient:
    """A client of an application behind the guard, without a network."""
    transport = httpx.ASGITransport(Guard(app, limits, token))
    return httpx.AsyncClient(transport=transport, base_url=BASE)


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(
        Memory=Memory,
        call_text=call_text,
        client_of=client_of,
        engine_of=engine_of,
        message=message,
        running=servers.running,
        says=says,
    )

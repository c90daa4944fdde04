"""Generated requests against the servers' own documents: whatever is sent, no server breaks."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from regimen.generation.base import Sampling
from regimen.generation.fake import FakeGeneration
from regimen.gym.agent import Limits, play
from regimen.gym.environment import Environment, Task, Verdict, load_environment
from regimen.serving.agent import AgentService
from regimen.serving.engine import Engine, Served
from regimen.serving.environment import environment_app
from regimen.serving.guard import Guard, ServerLimits
from regimen.serving.model import model_app
from regimen.tokens.template import Renderer

pytestmark = pytest.mark.slow
CASES = 300  # of each operation with a body, of which there are 23: more than 5,000 requests in all
ANSWERS = (
    "12",
    '<tool_call>{"name": "calculator", "arguments": {"expression": "1 + 1"}}</tool_call>',
    "<think>a</think>",
)


class Echo(Environment):
    """Takes every task and every call, so that requests get as far as they can."""

    name = "echo"

    def tasks(self, split: Any, num_tasks: int | None = None) -> list[Task]:
        tool = {"type": "function", "name": "calculator", "parameters": {"type": "object", "properties": {}}}
        return [Task(0, {"responses_create_params": {"input": "q", "tools": [tool]}})]

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
        return json.dumps(arguments)

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        return Verdict(len(output) / 7)


def generation_of(renderer: Renderer) -> FakeGeneration:
    """Answers by turns with a number, a call and a thought, whatever was asked."""

    def answer(prompt: list[int], _sampling: Sampling, _seed: int) -> list[int]:
        return [*renderer.encode(ANSWERS[len(prompt) % len(ANSWERS)]), *renderer.stop_ids]

    return FakeGeneration(answer)


def run_all(served: Any) -> dict[str, int]:
    """Send `CASES` requests to every operation of an application; the number of answers by path and status."""
    app = Guard(served, ServerLimits(sessions=50))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "127.0.0.1"})
    statuses: dict[str, int] = {}
    headers = {"host": "127.0.0.1"}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (
            (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if operation.body else (GenerationMode.POSITIVE,)
        ):

            @hypothesis.settings(
                max_examples=CASES // 2,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                response = case.call(app=app, headers=headers)
                key = f"{case.path} {response.status_code}"
                statuses[key] = statuses.get(key, 0) + 1
                case.validate_response(response, checks=[not_a_server_error])

            send()
    return statuses


def test_a_model_server(tiny: Any) -> None:
    renderer = Renderer(tiny.tiny_tokenizer())
    sampling = Sampling(max_new_tokens=100, stop_ids=renderer.stop_ids)
    served = Served(name="tiny", max_length=4000, vocabulary_size=258, sampling=sampling, with_token_ids=True)
    statuses = run_all(model_app(Engine(generation_of(renderer), renderer, served)))
    assert statuses["/v1/chat/completions 200"] > 0
    assert sum(statuses.values()) > 3 * CASES


@pytest.mark.parametrize("environment", [load_environment("calculator"), Echo()], ids=["calculator", "echo"])
def test_an_environment_and_its_agent(tiny: Any, environment: Environment) -> None:
    renderer = Renderer(tiny.tiny_tokenizer())
    generation = generation_of(renderer)

    async def play_task(environment: Any, task: Any, repeat: int, sampling: Sampling) -> Any:
        limits = Limits(max_sequence_length=4000)
        return await play(task, repeat, environment, generation, renderer, sampling, 0, limits)

    service = AgentService(environment, play_task, Sampling(max_new_tokens=100))
    statuses = run_all(environment_app(environment, extra=service.routes()))
    assert statuses["/v1/responses 200"] > 0
    assert sum(statuses.values()) > 10 * CASES
    if isinstance(environment, Echo):
        reached = ("/calculator", "/run", "/verify", "/seed_session", "/reset")
        assert min(statuses[f"{path} 200"] for path in reached) > 0

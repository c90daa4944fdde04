"""The agent over NeMo Gym's wire: plays whole episodes of the environment it stands beside.

In: an environment and a way to play one of its tasks. Out: routes `/run` and `/v1/responses`, and those of NeMo Gym's
head server, through which its collector finds the agent under `NAME_agent`. A failed episode is an error, never a
reward: 502 where the model failed, 504 where time ran out, 422 where the environment cannot use the task, else 500.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, cast

import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from regimen.errors import RequestError
from regimen.generation.base import Sampling
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.protocol import is_failure
from regimen.rollouts.outcomes import Outcome
from regimen.serving.answers import DATA_ERRORS, Body, answer, answering, convert
from regimen.serving.environment import task_index, task_row
from regimen.serving.wire import ResponsesRequest, check_supported, sampling_of

# (environment, task, repeat, sampling) -> a rollout row
Play = Callable[[Environment, Task, int, Sampling], Awaitable[Body]]
_STAMPS = ("agent_ref", "_ng_environment_server", "_ng_task_index", "_ng_rollout_index")
_DATA_ERRORS = frozenset(
    {error.__name__ for error in DATA_ERRORS} | {"KeyError", "IndexError", "RolloutError", "TokenError", "ConfigError"}
)


class AgentService:
    """The handlers of an agent server."""

    def __init__(self, environment: Environment, play: Play, sampling: Sampling) -> None:
        self.environment = environment
        self.play = play
        self.sampling = sampling

    def routes(self) -> list[Route]:
        """The agent's paths."""
        return [
            Route("/run", answering(self.run), methods=["POST"]),
            Route("/v1/responses", answering(self.responses), methods=["POST"]),
            Route("/global_config_dict_yaml", answering(self.global_config), methods=["GET"]),
            Route("/server_instances", answering(self.instances), methods=["GET"]),
        ]

    async def run(self, _request: Request, body: Body) -> Body:
        """Play and judge a task; answers with the rollout row, without the stamps that the collector puts on."""
        row = await self._played(self.environment, task_row(body))
        return {key: value for key, value in row.items() if key not in _STAMPS}

    async def responses(self, _request: Request, body: Body) -> Body:
        """Play a prompt without judging it; answers with the response, all turns and tool outputs in it."""
        row = await self._played(_Unjudged(self.environment), task_row({"responses_create_params": body}))
        return row["response"]

    async def _played(self, environment: Environment, row: Body) -> Body:
        sampling = self._sampling(row["responses_create_params"])
        repeat = row.get("_ng_rollout_index")
        # Without an index two runs of one task would be one and the same episode.
        number = repeat if type(repeat) is int else secrets.randbits(62)
        played = await self.play(environment, Task(task_index(row), row), number, sampling)
        if is_failure(played):
            raise _failure(played)
        return played

    def _sampling(self, params: Body) -> Sampling:
        asked = convert({key: value for key, value in params.items() if value is not None}, ResponsesRequest)
        check_supported(asked)
        return sampling_of(asked, self.sampling, max(self.sampling.max_new_tokens, asked.max_new_tokens or 1))

    async def global_config(self, request: Request, _body: Body) -> Response:
        """NeMo Gym's configuration of these servers: a JSON string that holds YAML."""
        return answer(yaml.safe_dump(self._instances(request), sort_keys=False))

    async def instances(self, request: Request, _body: Body) -> Response:
        """The instances, one object each."""
        found: list[Body] = []
        for name, kinds in self._instances(request).items():
            kind = next(iter(kinds)) if name != "head_server" else "head_server"
            place = kinds if name == "head_server" else next(iter(kinds[kind].values()))
            address = {"host": place["host"], "port": place["port"]}
            found.append({"name": name, "server_type": kind, **address, "status": "success"})
        return answer(found)

    def _instances(self, request: Request) -> dict[str, Any]:
        # The address of the connection, not the Host header: a client's word is not handed on.
        host, port = cast("tuple[str, int | None]", request.scope.get("server") or ("127.0.0.1", None))
        place = {"host": host, "port": port or 80}
        name = self.environment.name
        agent = f"{name}_agent"
        resources = {"type": "resources_servers", "name": name}
        return {
            "head_server": place,
            name: {"resources_servers": {name: {**place, "domain": "other"}}},
            agent: {"responses_api_agents": {"regimen_agent": {**place, "resources_server": resources}}},
            f"{name}_environment_server": {
                "environment_servers": {
                    "legacy_agent": {**place, "agent_server": {"type": "responses_api_agents", "name": agent}}
                }
            },
        }


class _Unjudged(Environment):
    """An environment whose episodes end without a verdict."""

    def __init__(self, environment: Environment) -> None:
        super().__init__()
        self.environment = environment
        self.name = environment.name
        self.max_turns = environment.max_turns

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        return self.environment.tasks(split, num_tasks)

    async def seed(self, task: Task) -> Any:
        return await self.environment.seed(task)

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
        return await self.environment.call(session, name, arguments)

    async def observe(self, session: Any, output: list[dict[str, Any]]) -> str | None:
        return await self.environment.observe(session, output)

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        return Verdict(0.0)

    async def close(self, session: Any) -> None:
        await self.environment.close(session)


def _failure(row: Body) -> RequestError:
    """The error of an episode that failed."""
    outcome, kind = row["_ng_failure_class"], row["_ng_failure_type"]
    statuses = {Outcome.MODEL_FAILED.value: 502, Outcome.TIMED_OUT.value: 504}
    status = statuses.get(outcome, 422 if kind in _DATA_ERRORS else 500)
    return RequestError(f"{kind}: {row['_ng_failure_message']}", status=status, code=outcome)

"""NeMo Gym's running servers: an agent found through the head server, which plays tasks and judges them.

In: the head server's address, an agent's name, task rows. Out: rollout rows, stamped. An agent behind an environment
server is asked through it. Refuses: unknown agents, naming those there are; what is no verdict becomes a failure row.
"""

from __future__ import annotations

import json
import math
from typing import Any, cast

import yaml

from regimen.endpoint import Endpoint
from regimen.errors import EndpointError, GymError, UsageError
from regimen.generation.base import Sampling
from regimen.gym.environment import Task
from regimen.gym.protocol import failure_fields, is_failure, request_params, stamps
from regimen.registry import did_you_mean
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import info_of, outcome_of_steps

Object = dict[str, Any]
_AGENTS = "responses_api_agents"
_SERVERS = "environment_servers"
# An episode is played again only where it was not played: a 500 of an environment is likely to come back.
_RETRIED = frozenset({429, 502, 503})


class GymAgent:
    """An agent of a running NeMo Gym, by its name."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self.endpoint = endpoint
        self.name = name

    async def play(self, task: Task, rollout_index: int, sampling: Sampling) -> Object:
        """One episode; a failure is a row as well."""
        params = request_params(task.row["responses_create_params"], sampling)
        indices = {"_ng_task_index": task.index, "_ng_rollout_index": rollout_index}
        asked = {**task.row, **indices, "agent_ref": {"name": self.name}, "responses_create_params": params}
        try:
            reply = await self.endpoint.post("/run", asked)
            row = _judged(reply, params)
        except EndpointError as error:
            outcome = Outcome.TIMED_OUT if error.status in (408, 504) else Outcome.ENVIRONMENT_FAILED
            row = _failed(params, outcome, type(error).__name__, str(error))
            row |= {"_ng_failure_http_status": error.status, "_ng_failure_response_body": error.body}
        return {**row, **stamps(task.index, rollout_index, self.name)}

    async def close(self) -> None:
        """Close the connections."""
        await self.endpoint.close()


async def find_agent(head_url: str, name: str, *, key: str | None = None, seconds: float = 1800.0) -> GymAgent:
    """The agent `name` of the gym whose head server is at `head_url`."""
    head = Endpoint(head_url, key=key, seconds=10.0, max_tries=3)
    try:
        text = await head.get_text("/global_config_dict_yaml")
    finally:
        await head.close()
    place = address_of_agent(_config(text, head_url), name, head_url)
    return GymAgent(Endpoint(place, key=key, seconds=seconds, retried=_RETRIED), name)


def address_of_agent(config: Object, name: str, where: str) -> str:
    """Where the agent's `/run` is: at the environment server that fronts it, else at itself."""
    agents: list[str] = []
    fronting: dict[bool, list[Object]] = {True: [], False: []}  # those that are its own, and those that use it
    own: Object | None = None
    for instance, block in config.items():
        for kind, server in _servers_of(block):
            if kind == _AGENTS:
                agents.append(instance)
                own = server if instance == name else own
            elif kind == _SERVERS and (is_its_own := _fronts(instance, server, name)) is not None:
                fronting[is_its_own].append(server)
    nearest = fronting[True] or fronting[False]
    if len(nearest) > 1:
        raise UsageError(
            f"{len(nearest)} environment servers front the agent {name!r}", where=where, fix="name one of them"
        )
    found = nearest[0] if nearest else own
    if found is None:
        raise UsageError(
            f"there is no agent {name!r}",
            where=where,
            expected=f"one of {', '.join(sorted(agents)) or 'none'}",
            fix=did_you_mean(name, agents),
        )
    if not found.get("host") or not found.get("port"):
        raise GymError(f"the agent {name!r} has no host and port", where=where)
    return f"http://{found['host']}:{found['port']}"


def _servers_of(block: object) -> list[tuple[str, Object]]:
    """Kind and settings of the servers in one block of the configuration."""
    if not isinstance(block, dict):
        return []
    found: list[tuple[str, Object]] = []
    for kind, servers in cast("Object", block).items():
        if isinstance(servers, dict):
            found += [(kind, cast("Object", one)) for one in cast("Object", servers).values() if isinstance(one, dict)]
    return found


def _fronts(instance: str, server: Object, name: str) -> bool | None:
    """Whether an environment server is that agent's own (it has the name, or names the agent in `agent_server`).

    False where it refers to the agent by another field, None where it does not.
    """
    fields = {field for field, value in server.items() if _refers(field, value, name)}
    if instance == name or "agent_server" in fields:
        return True
    return False if fields else None


def _refers(field: str, reference: object, name: str) -> bool:
    if not isinstance(reference, dict) or cast("Object", reference).get("name") != name:
        return False
    kind = cast("Object", reference).get("type")
    return kind == _AGENTS or (kind is None and field == "agent_server")


def _config(text: str, where: str) -> Object:
    try:
        value = cast("object", json.loads(text))
        tree = cast("object", yaml.safe_load(value)) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise GymError(f"the head server's configuration cannot be read ({error})", where=where) from None
    if not isinstance(tree, dict):
        raise GymError("the head server's configuration is no mapping", where=where)
    return cast("Object", tree)


def _judged(reply: Object, params: Object) -> Object:
    """The reply as a row: failures of the other side, rewards that are no numbers and masked episodes are failures."""
    reward = reply.get("reward")
    kept = {key: value for key, value in reply.items() if key != "reward"}
    if is_failure(reply):
        reason = str(reply.get("_ng_failure_message") or "the environment server failed")
        return {**kept, **_failed(params, Outcome.ENVIRONMENT_FAILED, str(reply["_ng_failure_class"]), reason)}
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        return _failed(params, Outcome.VERIFIER_FAILED, "GymError", f"the reward is {reward!r}")
    response = reply.get("response")
    if not isinstance(response, dict):
        return _failed(params, Outcome.VERIFIER_FAILED, "GymError", "the reply has no response")
    if reply.get("mask_sample"):
        kind = str(reply.get("failure_kind") or "masked")
        reason = str(reply.get("failure_reason") or "the episode is masked")
        return {**kept, **_failed(params, Outcome.VERIFIER_FAILED, kind, reason), "response": response}
    outcome, reason = _end_of(reply, cast("Object", response))
    if not outcome.is_scored:
        return {**kept, **_failed(params, outcome, "GymError", str(reason)), "response": response}
    usage = cast("Object", response).get("usage") or {"output_tokens": 0}
    response = {**cast("Object", response), "usage": usage}
    stamp = {**_stamp(reply), "outcome": outcome.value, "reason": reason}
    return {**_components(reply), **reply, "response": response, "regimen": stamp}


def _end_of(reply: Object, response: Object) -> tuple[Outcome, str | None]:
    """How a judged episode ended."""
    by_steps = outcome_of_steps(reply)
    if by_steps is not None:
        return by_steps
    cut = response.get("incomplete_details")
    reason = cast("Object", cut).get("reason") if isinstance(cut, dict) else None
    return Outcome.TRUNCATED if cut else Outcome.OK, reason


def _components(reply: Object) -> Object:
    """The components of the reward where an episode by steps has them, in the place where others have them."""
    found = info_of(reply).get("reward_components")
    return {"reward_components": found} if isinstance(found, dict) and found else {}


def _stamp(reply: Object) -> Object:
    """What a Regimen server says of the tokens; another's says nothing."""
    given = reply.get("regimen")
    return cast("Object", given) if isinstance(given, dict) else {"tokenizer": None, "template": None}


def _failed(params: Object, outcome: Outcome, kind: str, reason: str) -> Object:
    response: Object = {"output": [], "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}
    row: Object = {"responses_create_params": params, "response": response}
    stamp = {"outcome": outcome.value, "reason": reason}
    return {**row, **failure_fields(outcome.value, kind, reason), "regimen": stamp}

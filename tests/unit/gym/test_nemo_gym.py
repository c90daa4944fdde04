from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from regimen.endpoint import Endpoint
from regimen.errors import UsageError
from regimen.generation.base import Sampling
from regimen.gym.environment import Task
from regimen.gym.nemo_gym import GymAgent, address_of_agent
from regimen.gym.protocol import is_failure

TASK = Task(3, {"responses_create_params": {"input": "q"}, "answer": "4"})
RESPONSE = {"output": [], "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}
CONFIG = {
    "head_server": {"host": "h", "port": 1},
    "policy_model": {"responses_api_models": {"vllm_model": {"host": "h", "port": 2}}},
    "mcqa": {"resources_servers": {"mcqa": {"host": "h", "port": 3}}},
    "mcqa_agent": {"responses_api_agents": {"simple_agent": {"host": "h", "port": 4}}},
    "old_agent": {"responses_api_agents": {"simple_agent": {"host": "h", "port": 5}}},
    "mcqa_server": {
        "environment_servers": {"legacy_agent": {"host": "h", "port": 6, "agent_server": {"name": "mcqa_agent"}}}
    },
    "talker_agent": {"responses_api_agents": {"simple_agent": {"host": "h", "port": 7}}},
    "talk_server": {
        "environment_servers": {
            "talk": {
                "host": "h",
                "port": 8,
                "agent_server": {"type": "responses_api_agents", "name": "other_agent"},
                "user": {"type": "responses_api_agents", "name": "talker_agent"},
                "tools": {"type": "resources_servers", "name": "old_agent"},
            }
        }
    },
    "text": "not an instance",
}


def test_an_agent_is_asked_through_the_server_that_fronts_it() -> None:
    assert address_of_agent(CONFIG, "mcqa_agent", "gym") == "http://h:6"
    assert address_of_agent(CONFIG, "mcqa_server", "gym") == "http://h:6"
    assert address_of_agent(CONFIG, "talker_agent", "gym") == "http://h:8"
    assert address_of_agent(CONFIG, "old_agent", "gym") == "http://h:5"


def test_a_server_that_only_uses_an_agent_does_not_stand_before_its_own() -> None:
    agent = {"type": "responses_api_agents", "name": "mcqa_agent"}
    judged = {"environment_servers": {"judged": {"host": "h", "port": 9, "judge_agent": agent}}}
    assert address_of_agent({**CONFIG, "judged_server": judged}, "mcqa_agent", "gym") == "http://h:6"
    twice = {"environment_servers": {"again": {"host": "h", "port": 9, "agent_server": agent}}}
    with pytest.raises(UsageError, match="2 environment servers front the agent 'mcqa_agent'"):
        address_of_agent({**CONFIG, "twice": twice}, "mcqa_agent", "gym")


def test_an_unknown_agent_names_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"expected one of mcqa_agent, old_agent, talker_agent; to fix: did you mean 'mcqa_agent'"
    ):
        address_of_agent(CONFIG, "mcqa_agnt", "gym")
    twice = {**CONFIG, "second": CONFIG["mcqa_server"]}
    with pytest.raises(UsageError, match="2 environment servers"):
        address_of_agent(twice, "mcqa_agent", "gym")


async def played(answer: httpx.Response, asked: list[Any] | None = None) -> dict[str, Any]:
    def handle(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append((request.url.path, json.loads(request.content)))
        return answer

    endpoint = Endpoint("http://h:6", max_tries=1, transport=httpx.MockTransport(handle))
    return await GymAgent(endpoint, "mcqa_agent").play(TASK, 1, Sampling(temperature=0.5, max_new_tokens=9))


async def test_a_verdict_becomes_a_stamped_row() -> None:
    asked: list[Any] = []
    row = await played(httpx.Response(200, json={"reward": 1, "response": RESPONSE, "score": 2}), asked)
    ((path, body),) = asked
    assert (path, body["answer"], body["_ng_task_index"], body["_ng_rollout_index"]) == ("/run", "4", 3, 1)
    assert body["responses_create_params"]["temperature"] == 0.5
    assert (row["reward"], row["score"], row["_ng_task_index"], row["_ng_rollout_index"]) == (1, 2, 3, 1)
    assert (row["agent_ref"], row["regimen"]["outcome"]) == ({"name": "mcqa_agent"}, "ok")
    assert not is_failure(row)


async def test_a_cut_episode_is_truncated() -> None:
    cut = {**RESPONSE, "incomplete_details": {"reason": "max_output_tokens"}}
    row = await played(httpx.Response(200, json={"reward": 0.0, "response": cut}))
    assert (row["regimen"]["outcome"], row["regimen"]["reason"]) == ("truncated", "max_output_tokens")


async def test_an_episode_by_steps_has_its_components_where_others_have_them() -> None:
    steps = {"reward": 1.0, "response": RESPONSE, "terminated": True, "truncated": False}
    row = await played(httpx.Response(200, json={**steps, "info": {"won": True, "reward_components": {"a": 1.0}}}))
    assert (row["regimen"]["outcome"], row["reward_components"]) == ("ok", {"a": 1.0})
    row = await played(httpx.Response(200, json={**steps, "terminated": False, "truncated": True, "info": {}}))
    assert (row["regimen"]["outcome"], row["regimen"]["reason"]) == ("truncated", "truncated")
    assert "reward_components" not in row


UNJUDGED = {"reward": 0.0, "response": RESPONSE, "terminated": False, "truncated": True, "info": {"judged": False}}


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (httpx.Response(200, json=UNJUDGED), "verifier_failed", "raise its max_steps"),
        (httpx.Response(500, json={"detail": "judge down"}), "environment_failed", "judge down"),
        (httpx.Response(504, text="slow"), "timed_out", "slow"),
        (httpx.Response(200, json={"response": RESPONSE}), "verifier_failed", "the reward is None"),
        (httpx.Response(200, json={"reward": True, "response": RESPONSE}), "verifier_failed", "the reward is True"),
        (httpx.Response(200, text='{"reward": NaN, "response": {}}'), "verifier_failed", "the reward is nan"),
        (httpx.Response(200, json={"reward": 1.0}), "verifier_failed", "no response"),
        (
            httpx.Response(200, json={"reward": 0.0, "response": RESPONSE, "mask_sample": True, "failure_reason": "r"}),
            "verifier_failed",
            "r",
        ),
        (
            httpx.Response(200, json={"_ng_failure_class": "environment_server_failed", "_ng_failure_message": "no"}),
            "environment_failed",
            "no",
        ),
    ],
    ids=str,
)
async def test_a_failure_is_never_a_reward(answer: httpx.Response, outcome: str, reason: str) -> None:
    row = await played(answer)
    assert is_failure(row)
    assert "reward" not in row
    assert (row["_ng_failure_class"], row["regimen"]["outcome"]) == (outcome, outcome)
    assert reason in row["_ng_failure_message"]
    assert row["_ng_failure_http_status"] == (answer.status_code if answer.status_code != 200 else None)

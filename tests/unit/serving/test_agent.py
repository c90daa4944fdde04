from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from regimen.generation.base import Sampling
from regimen.gym.agent import Limits, play
from regimen.gym.nemo_gym import address_of_agent
from regimen.serving.agent import AgentService
from regimen.serving.environment import environment_app

ROW = {"responses_create_params": {"input": "say it", "tools": []}, "secret": "x", "_ng_task_index": 4}


@pytest.fixture
def client_of_agent(kit: Any) -> Any:
    """Answers -> a client of an agent server whose model gives them, and the repeats and samplings it was asked for."""

    def make(*texts: Any, environment: Any = None, sampling: Sampling | None = None) -> Any:
        memory = environment or kit.Memory()
        generation, renderer = kit.says(*texts), kit.engine_of(kit.says()).renderer
        asked: list[Any] = []

        async def play_task(environment: Any, task: Any, repeat: int, sampling: Sampling) -> Any:
            asked.append((repeat, sampling))
            limits = Limits(max_sequence_length=2000)
            return await play(task, repeat, environment, generation, renderer, sampling, 0, limits)

        service = AgentService(memory, play_task, sampling or Sampling(max_new_tokens=200))
        return kit.client_of(environment_app(memory, extra=service.routes())), asked

    return make


def row_of(kit: Any) -> dict[str, Any]:
    return {**ROW, "responses_create_params": {"input": "say it", "tools": [kit.Memory.TOOL]}}


async def test_run_plays_and_judges(kit: Any, client_of_agent: Any) -> None:
    client, asked = client_of_agent(kit.call_text("remember", word="blue"), "blue")
    async with client:
        row = (await client.post("/run", json={**row_of(kit), "_ng_rollout_index": 2})).json()
    assert (row["reward"], row["num_turns"], row["num_tool_calls"]) == (1.0, 2, 1)
    assert [item["type"] for item in row["response"]["output"]] == ["function_call", "function_call_output", "message"]
    first, last = row["response"]["output"][0], row["response"]["output"][2]
    held = first["prompt_token_ids"] + first["generation_token_ids"]
    assert last["prompt_token_ids"][: len(held)] == held
    assert not [key for key in row if key.startswith("_ng_") or key == "agent_ref"]
    assert asked[0][0] == 2


async def test_repeats_without_an_index_differ(kit: Any, client_of_agent: Any) -> None:
    client, asked = client_of_agent("a", "b")
    async with client:
        for _ in range(2):
            await client.post("/run", json=ROW)
    assert asked[0][0] != asked[1][0]


async def test_the_row_decides_how_to_sample(kit: Any, client_of_agent: Any) -> None:
    client, asked = client_of_agent("a", "b", sampling=Sampling(temperature=0.5, max_new_tokens=200))
    params = {"input": "x", "temperature": 0, "max_output_tokens": 9, "top_p": None, "truncation": None}
    async with client:
        await client.post("/run", json={**ROW, "responses_create_params": params})
        await client.post("/run", json=ROW)
        refused = await client.post("/run", json={**ROW, "responses_create_params": {"input": "x", "top_p": 2}})
    assert (asked[0][1].temperature, asked[0][1].max_new_tokens, asked[0][1].top_p) == (0, 9, 1.0)
    assert (asked[1][1].temperature, asked[1][1].max_new_tokens) == (0.5, 200)
    assert refused.status_code == 400


async def test_responses_plays_without_judging(kit: Any, client_of_agent: Any) -> None:
    class Unseeded(kit.Memory):
        async def seed(self, task: Any) -> Any:
            self.num_open += 1
            return {"words": []}

        async def verify(self, session: Any, task: Any, output: Any) -> Any:
            raise AssertionError("nothing is to be judged")

    memory = Unseeded()
    client, _ = client_of_agent(kit.call_text("remember", word="w"), "done", environment=memory)
    async with client:
        params = row_of(kit)["responses_create_params"]
        response = (await client.post("/v1/responses", json=params)).json()
    assert response["object"] == "response"
    assert response["output"][1]["output"] == "w"
    assert memory.num_open == 0


async def test_failures_are_errors_by_their_kind(kit: Any, client_of_agent: Any) -> None:
    client, _ = client_of_agent(kit.call_text("remember", word="explode"))
    async with client:
        broken = await client.post("/run", json=row_of(kit))
        no_model = await client.post("/run", json=row_of(kit))  # the script is used up
        no_secret = await client.post("/run", json={"responses_create_params": {"input": "x"}})
        no_row = await client.post("/run", json={"responses_create_params": {}})
    assert (broken.status_code, broken.json()["error"]["code"]) == (500, "environment_failed")
    assert (no_model.status_code, no_model.json()["error"]["code"]) == (502, "model_failed")
    assert no_secret.status_code == 422
    assert no_row.status_code == 400
    assert "reward" not in broken.json()


async def test_a_gym_finds_the_agent_through_the_head_server(kit: Any, client_of_agent: Any) -> None:
    client, _ = client_of_agent()
    async with client:
        text = (await client.get("/global_config_dict_yaml")).text
        listed = (await client.get("/server_instances")).json()
    config = yaml.safe_load(json.loads(text))
    assert address_of_agent(config, "memory_agent", "here") == "http://127.0.0.1:80"
    assert config["memory_environment_server"]["environment_servers"]["legacy_agent"]["agent_server"] == {
        "type": "responses_api_agents",
        "name": "memory_agent",
    }
    assert {one["name"] for one in listed} == set(config)

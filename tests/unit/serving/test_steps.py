"""NeMo Gym's Gymnasium wire: `/reset`, then `/step` with the response of each turn, as its agent does."""

from __future__ import annotations

from typing import Any

from regimen.gym.environment import load_environment
from regimen.gym.environments.gridworld import Gridworld
from regimen.serving.environment import COOKIE, environment_app


def turn(*items: Any) -> dict[str, Any]:
    return {"id": "r", "object": "response", "output": [*items], "tools": []}


async def walk(kit: Any, client: Any, row: dict[str, Any], moves: list[str]) -> list[dict[str, Any]]:
    begun = await client.post("/reset", json=row)
    assert (begun.status_code, begun.json()) == (200, {"observation": None, "info": {}})
    replies = []
    for move in moves:
        item = kit.message(f"<action>{move}</action>")
        reply = await client.post("/step", json={**row, "response": turn(item)})
        assert COOKIE in reply.cookies  # NeMo Gym's agent sends the cookies of the last answer
        replies.append(reply.json())
    return replies


async def test_an_episode_by_steps(kit: Any) -> None:
    environment = Gridworld()
    row = environment.tasks("train", 1)[0].row
    session = await environment.seed(environment.tasks("train", 1)[0])
    way = session.world.way()
    async with kit.client_of(environment_app(environment)) as client:
        replies = await walk(kit, client, row, way)
        assert [reply["reward"] for reply in replies] == [0.0] * (len(way) - 1) + [1.0]
        assert [reply["terminated"] for reply in replies] == [False] * (len(way) - 1) + [True]
        assert replies[0]["observation"].startswith(f"You moved {way[0]}.")
        assert replies[-1]["observation"] is None
        assert replies[-1]["info"]["num_steps"] == len(way)
        assert replies[-1]["info"]["reward_components"] == {"goal": 1.0, "directness": 1.0}
        over = await client.post("/step", json={**row, "response": turn(kit.message("up"))})
        assert (over.status_code, over.json()["error"]["code"]) == (400, "no_session")


async def test_steps_without_end_are_cut_at_the_environments_limit(kit: Any) -> None:
    class Short(Gridworld):
        def __init__(self) -> None:
            super().__init__()
            self.max_turns = 2

    environment = Short()
    async with kit.client_of(environment_app(environment)) as client:
        first, second = await walk(kit, client, environment.tasks("train", 1)[0].row, ["?", "?"])
    assert (first["terminated"], first["truncated"]) == (False, False)
    assert (second["terminated"], second["truncated"], second["reward"]) == (False, True, 0.0)


async def test_calls_come_back_as_tool_outputs(kit: Any) -> None:
    environment = load_environment("calculator")
    row = next(t.row for t in environment.tasks("train", 20) if t.row["responses_create_params"].get("tools"))
    call = {"type": "function_call", "name": "calculator", "arguments": '{"expression": "2 + 3"}', "call_id": "c1"}
    wrong = {**call, "name": "abacus", "call_id": "c2"}
    async with kit.client_of(environment_app(environment)) as client:
        await client.post("/reset", json=row)
        called = (await client.post("/step", json={**row, "response": turn(call, wrong)})).json()
        refused = {"call_id": "c2", "output": "Error: unknown tool 'abacus'; use calculator"}
        assert called["info"]["tool_outputs"] == [{"call_id": "c1", "output": "5"}, refused]
        assert (called["terminated"], called["observation"]) == (False, None)
        said = kit.message(f"The answer is {row['expected_answer']}.")
        last = (await client.post("/step", json={**row, "response": turn(said)})).json()
    assert (last["terminated"], last["reward"]) == (True, 1.0)


async def test_a_step_needs_a_beginning_and_items(kit: Any) -> None:
    row = Gridworld().tasks("train", 1)[0].row
    for environment in (Gridworld(), load_environment("calculator")):
        async with kit.client_of(environment_app(environment)) as client:
            early = await client.post("/step", json={**row, "response": turn()})
            assert (early.status_code, early.json()["error"]["code"]) == (400, "no_session")
            assert (await client.post("/step", json={**row, "response": {"output": [3]}})).status_code == 422
            assert (await client.post("/reset", json={})).status_code == 422

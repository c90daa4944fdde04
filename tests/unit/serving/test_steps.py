"""NeMo Gym's Gymnasium wire: `/reset`, then `/step` with the response of each turn, as its agent does."""

from __future__ import annotations

from typing import Any

from regimen.gym.environment import load_environment
from regimen.gym.environments.gridworld import Gridworld
from regimen.rollouts.messages import output_messages
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Source, rollout_from_row
from regimen.serving.environment import COOKIE, environment_app

SOURCE = Source("rollouts.jsonl", 1)


def turn(*items: Any) -> dict[str, Any]:
    return {"id": "r", "object": "response", "output": [*items], "tools": []}


async def walk(kit: Any, client: Any, row: dict[str, Any], moves: list[str]) -> list[dict[str, Any]]:
    begun = await client.post("/reset", json=row)
    assert (begun.status_code, begun.json()["observation"]) == (200, None)
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
        assert replies[0]["info"] == {"tool_outputs": [], "judged": False}
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
            await client.post("/reset", json=row)
            for name in ("", 3, "a" * 300):
                step = {**row, "response": turn(), "_ng_step_request_id": name}
                assert (await client.post("/step", json=step)).status_code == 400


async def solved(kit: Any, environment: Gridworld) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a task, and the steps that solve it, each with an id."""
    task = environment.tasks("train", 1)[0]
    way = (await environment.seed(task)).world.way()
    steps = [
        {**task.row, "response": turn(kit.message(move)), "_ng_step_request_id": f"s{number}"}
        for number, move in enumerate(way)
    ]
    return task.row, steps


async def test_a_step_that_is_sent_again_moves_once(kit: Any) -> None:
    environment = Gridworld()
    row, steps = await solved(kit, environment)
    async with kit.client_of(environment_app(environment)) as client:
        await client.post("/reset", json=row)
        for step in steps:
            first, again = [(await client.post("/step", json=step)).json() for _ in range(2)]
            assert again == first
        assert (first["terminated"], first["reward"], first["info"]["num_steps"]) == (True, 1.0, len(steps))
        over = await client.post("/step", json={**step, "_ng_step_request_id": "more"})
        assert (over.status_code, over.json()["error"]["code"]) == (400, "no_session")


async def test_a_step_that_failed_and_is_sent_again_fails_again_and_moves_nothing(kit: Any) -> None:
    class Failing(Gridworld):
        judged = 0

        async def verify(self, session: Any, task: Any, output: Any) -> Any:
            self.judged += 1
            raise RuntimeError("the judge is away")

    environment = Failing()
    row, steps = await solved(kit, environment)
    async with kit.client_of(environment_app(environment)) as client:
        await client.post("/reset", json=row)
        for step in steps:
            answers = [await client.post("/step", json=step) for _ in range(2)]
            assert answers[0].status_code == answers[1].status_code == (500 if step is steps[-1] else 200)
        assert answers[0].json() == answers[1].json()
    assert environment.judged == 1


async def test_close_ends_an_episode_wherever_it_stands(kit: Any) -> None:
    environment = kit.Memory()
    row = environment.tasks("train", 1)[0].row
    call = {"type": "function_call", "name": "remember", "arguments": '{"word": "a"}', "call_id": "c"}
    async with kit.client_of(environment_app(environment)) as client:
        await client.post("/reset", json=row)
        await client.post("/step", json={**row, "response": turn(call), "_ng_step_request_id": "s"})
        assert environment.num_open == 1
        for _ in range(2):
            closed = await client.post("/close", json={})
            assert (closed.status_code, closed.json()) == (200, {})
            assert environment.num_open == 0


class GymnasiumAgent:
    """What NeMo Gym 0.7's `gymnasium_agent` sends and what it makes of the answers, against a scripted model."""

    def __init__(self, client: Any, max_steps: int = 30, prefix: str = "/ng-rollout/0-1") -> None:
        self.client = client
        self.max_steps = max_steps
        self.prefix = prefix
        self.cookies: dict[str, str] = {}

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """It keeps the cookies itself, those of the last answer over those of before."""
        self.client.cookies = dict(self.cookies)
        reply = await self.client.post(self.prefix + path, json=body)
        assert reply.status_code == 200, reply.text
        self.cookies |= dict(reply.cookies)
        return reply.json()

    async def run(self, row: dict[str, Any], model: Any) -> dict[str, Any]:
        """Play a task; the rewards of the steps are added up, the last step tells how it ended."""
        begun = await self.post("/reset", row)
        assert begun["info"]["supports_explicit_close"] is begun["info"]["supports_step_idempotency"] is True
        output: list[dict[str, Any]] = []
        total, step, is_over = 0.0, {}, False
        for number in range(self.max_steps):
            said = model(output)
            output += said
            body = {**row, "response": turn(*said), "_ng_step_request_id": f"step{number}"}
            step = await self.post("/step", body)
            total += step["reward"]
            is_over = step["terminated"] or step["truncated"]
            if is_over:
                break
            for made in step["info"].get("tool_outputs", []):
                output.append({"type": "function_call_output", **made})
            if step["observation"]:
                output.append({"type": "message", "role": "user", "content": step["observation"]})
        await self.post("/close", {})
        kept = {"terminated": step["terminated"], "truncated": step["truncated"] or not is_over, "info": step["info"]}
        params = row["responses_create_params"]
        return {"responses_create_params": params, "response": turn(*output), "reward": total, **kept}


async def test_an_episode_as_nemo_gyms_agent_plays_it(kit: Any) -> None:
    environment = Gridworld()
    task = environment.tasks("train", 1)[0]
    way = (await environment.seed(task)).world.way()

    def model(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        move = way[sum(item["role"] == "assistant" for item in output)]
        return [kit.message(f"<action>{move}</action>")]

    async with kit.client_of(environment_app(environment)) as client:
        whole = rollout_from_row(await GymnasiumAgent(client).run(task.row, model), SOURCE)
        cut = rollout_from_row(await GymnasiumAgent(client, len(way) - 1, "").run(task.row, model), SOURCE)
    assert (whole.reward, whole.outcome) == (1.0, Outcome.OK)
    assert whole.components == {"goal": 1.0, "directness": 1.0}
    assert whole.metrics["info.num_steps"] == len(way)
    told = output_messages(whole.output)
    assert [message["role"] for message in told] == ["assistant", "user"] * (len(way) - 1) + ["assistant"]
    assert told[1]["content"].startswith(f"You moved {way[0]}.")
    # The agent was done before the environment was: nothing was judged, so its 0 is no reward.
    assert (cut.reward, cut.outcome) == (None, Outcome.VERIFIER_FAILED)
    assert "max_steps" in (cut.reason or "")


async def test_tools_as_nemo_gyms_agent_plays_them(kit: Any) -> None:
    environment = load_environment("calculator")
    row = next(t.row for t in environment.tasks("train", 20) if t.row["responses_create_params"].get("tools"))

    def model(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if output:
            return [kit.message(f"The answer is {row['expected_answer']}.")]
        call = {"type": "function_call", "name": "calculator", "arguments": '{"expression": "2 + 3"}', "call_id": "c"}
        return [call]

    async with kit.client_of(environment_app(environment)) as client:
        rollout = rollout_from_row(await GymnasiumAgent(client).run(row, model), SOURCE)
    assert (rollout.reward, rollout.outcome) == (1.0, Outcome.OK)
    assert [item["type"] for item in rollout.output] == ["function_call", "function_call_output", "message"]
    assert rollout.output[1]["output"] == "5"
    assert rollout.metrics["info.num_calls"] == 1.0

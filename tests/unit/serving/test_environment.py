from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regimen.errors import ConfigError
from regimen.gym.environment import Environment, Task, Verdict
from regimen.serving.environment import COOKIE, environment_app, metrics_of
from regimen.serving.guard import ServerLimits
from regimen.serving.sessions import Sessions

ROW = {"responses_create_params": {"input": "say it"}, "secret": "x", "_ng_task_index": 4}


def verify_body(kit: Any, text: str, **row: Any) -> dict[str, Any]:
    response = {"id": "r", "object": "response", "output": [kit.message(text)], "tools": []}
    return {**ROW, **row, "response": response}


async def test_an_episode_over_the_wire(kit: Any) -> None:
    memory = kit.Memory()
    async with kit.client_of(environment_app(memory)) as client:
        seeded = await client.post("/seed_session", json=ROW)
        assert (seeded.status_code, seeded.json()) == (200, {})
        said = await client.post("/remember", json={"word": "blue"})
        assert (said.text, said.headers["content-type"]) == ("blue", "text/plain; charset=utf-8")
        assert (await client.post("/remember", json={"word": "green"})).text == "blue green"
        verdict = (await client.post("/verify", json=verify_body(kit, "green"))).json()
        assert verdict["reward"] == 1.0
        assert verdict["reward_components"] == {"right": 1.0}
        assert verdict["mask_sample"] is False
        assert verdict["num_words"] == 2
        assert verdict["responses_create_params"] == ROW["responses_create_params"]
        assert verdict["response"]["output"][0]["content"][0]["text"] == "green"
        assert memory.num_open == 1
        assert (await client.post("/close_session")).json() == {}
        assert memory.num_open == 0
        assert (await client.post("/remember", json={"word": "red"})).status_code == 400


async def test_the_seeded_task_is_judged_whatever_the_caller_says_later(kit: Any) -> None:
    async with kit.client_of(environment_app(kit.Memory())) as client:
        await client.post("/seed_session", json=ROW)
        verdict = (await client.post("/verify", json=verify_body(kit, "a", secret="forged"))).json()
        assert (verdict["secret"], verdict["reward"]) == ("x", 0.0)


async def test_sessions_do_not_mix(kit: Any) -> None:
    app = environment_app(kit.Memory())
    async with kit.client_of(app) as one, kit.client_of(app) as two:
        for client, word in ((one, "a"), (two, "b")):
            assert "regimen_session" in (await client.post("/seed_session", json=ROW)).cookies
            await client.post("/remember", json={"word": word})
        assert (await one.post("/verify", json=verify_body(kit, "b"))).json()["reward"] == 0.0
        assert (await two.post("/verify", json=verify_body(kit, "b"))).json()["reward"] == 1.0


@pytest.mark.parametrize("cookie", [None, "", "guess", "x" * 4000, "a%0d%0aset-cookie: b=c"])
async def test_without_a_session_nothing_is_judged(kit: Any, cookie: str | None) -> None:
    headers = {} if cookie is None else {"cookie": f"{COOKIE}={cookie}"}
    async with kit.client_of(environment_app(kit.Memory())) as client:
        response = await client.post("/verify", json=verify_body(kit, "a"), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "no_session")
        assert "set-cookie" not in response.headers


async def test_an_environment_server_names_its_sessions(kit: Any) -> None:
    memory = kit.Memory()
    seed = {"resources_session_id": "s-1", "episode_id": {}, "task_id": {}, "task_data": {"secret": "y"}}
    async with kit.client_of(environment_app(memory)) as client:
        for _ in range(2):  # repeating a seed gives the session that there is
            assert (await client.post("/seed_session", json=seed)).json() == {"resources_session_id": "s-1"}
        assert memory.num_open == 1
        assert (await client.post("/verify", json=verify_body(kit, "a"))).json()["secret"] == "y"
        closed = await client.post("/close_session", json={"resources_session_id": "s-1", "episode_id": {}})
        assert (closed.json(), memory.num_open) == ({"resources_session_id": "s-1"}, 0)
        assert (await client.post("/seed_session", json=seed)).status_code == 409
        again = await client.post("/close_session", json={"resources_session_id": "never seeded"})
        assert again.status_code == 200


async def test_tool_errors_are_text_for_the_model_and_failures_are_not(kit: Any) -> None:
    async with kit.client_of(environment_app(kit.Memory())) as client:
        await client.post("/seed_session", json=ROW)
        unknown = await client.post("/forget", json={})
        assert (unknown.status_code, unknown.text) == (400, "Error: unknown tool 'forget'")
        wrong = await client.post("/remember", json={"wrod": "x"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "unusable")
        broken = await client.post("/remember", json={"word": "explode"})
        assert (broken.status_code, "boom" in broken.text) == (500, False)


@pytest.mark.parametrize(
    "path", ["/../verify", "/..%2fverify", "/a%2fb", "/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/a%00b", "/a%0d%0ab", "//x"]
)
async def test_odd_tool_names_reach_no_tool(kit: Any, path: str) -> None:
    calls: list[str] = []

    class Recorder(kit.Memory):
        async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
            calls.append(name)
            return ""

    with kit.running(environment_app(Recorder())) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
    assert answer.split()[1] in (b"400", b"404"), answer
    assert calls == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/seed_session", {}),
        ("/seed_session", {"responses_create_params": []}),
        ("/seed_session", {"responses_create_params": {"input": 3}}),
        ("/seed_session", {"responses_create_params": {"input": [{"type": "mystery"}]}}),
        ("/seed_session", {"responses_create_params": {"input": "a", "tools": [{}]}}),
        ("/seed_session", {"responses_create_params": {"input": "no secret"}}),
        ("/seed_session", {"resources_session_id": "", "task_data": {}}),
        ("/seed_session", {"resources_session_id": "a", "task_data": 3}),
        ("/verify", ROW),
        ("/verify", {**ROW, "response": {"output": "text"}}),
        ("/verify", {**ROW, "response": {"output": [3]}}),
        ("/aggregate_metrics", {"verify_responses": [{}]}),
        ("/aggregate_metrics", {"verify_responses": [{"reward": True}]}),
        ("/aggregate_metrics", {}),
    ],
)
async def test_bodies_that_are_no_tasks_are_refused(kit: Any, path: str, body: Any) -> None:
    async with kit.client_of(environment_app(kit.Memory())) as client:
        response = await client.post(path, json=body)
        assert 400 <= response.status_code < 500
        assert response.json()["error"]["message"]


class Plain(Environment):
    """Keeps nothing; `reward` is what every episode gets."""

    name = "plain"
    reward: Any = 0.5

    def tasks(self, split: Any, num_tasks: int | None = None) -> list[Task]:
        return []

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        await asyncio.sleep(0)
        return Verdict(self.reward)


async def test_an_environment_without_state_needs_no_seed(kit: Any) -> None:
    async with kit.client_of(environment_app(Plain())) as client:
        assert (await client.post("/verify", json=verify_body(kit, "a"))).json()["reward"] == 0.5


async def test_a_reward_that_is_no_number_is_an_error(kit: Any) -> None:
    plain = Plain()
    plain.reward = float("nan")
    async with kit.client_of(environment_app(plain)) as client:
        response = await client.post("/verify", json=verify_body(kit, "a"))
        assert response.status_code == 500
        assert "reward" not in response.json()


async def test_a_slow_environment_is_not_waited_for(kit: Any) -> None:
    class Slow(Plain):
        async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
            await asyncio.sleep(30)
            return Verdict(1.0)

    async with kit.client_of(environment_app(Slow(), ServerLimits(call_seconds=0.05))) as client:
        assert (await client.post("/verify", json=verify_body(kit, "a"))).status_code == 504


async def test_calls_of_one_session_wait_for_each_other(kit: Any) -> None:
    class Careful(kit.Memory):
        busy = 0

        async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
            self.busy += 1
            most = self.busy
            await asyncio.sleep(0.02)
            self.busy -= 1
            return str(most)

    async with kit.client_of(environment_app(Careful())) as client:
        await client.post("/seed_session", json=ROW)
        answers = await asyncio.gather(*(client.post("/remember", json={}) for _ in range(4)))
        assert [answer.text for answer in answers] == ["1"] * 4


def task() -> Task:
    return Task(0, ROW)


async def test_too_many_sessions_are_refused_and_verified_ones_make_room(kit: Any) -> None:
    memory = kit.Memory()
    sessions = Sessions(memory, ServerLimits(sessions=2))
    first, _ = await sessions.open(task()), await sessions.open(task())
    with pytest.raises(Exception, match="2 sessions are open") as refused:
        await sessions.open(task())
    assert refused.value.status == 503  # type: ignore[attr-defined]
    first.is_verified = True
    third = await sessions.open(task())
    assert (sessions.find(first.key), sessions.find(third.key), memory.num_open) == (None, third, 2)


async def test_old_sessions_end(kit: Any) -> None:
    memory, now = kit.Memory(), [0.0]
    sessions = Sessions(memory, ServerLimits(session_seconds=10), clock=lambda: now[0])
    session = await sessions.open(task())
    now[0] = 10.0
    assert sessions.find(session.key) is session
    now[0] = 10.1
    assert sessions.find(session.key) is None
    await sessions.open(task())
    assert memory.num_open == 1
    await sessions.close_all()
    assert (memory.num_open, len(sessions)) == (0, 0)


def test_metrics_of_stripped_responses() -> None:
    rows = [
        {"_ng_task_index": 0, "reward": 1.0, "steps": 3, "response": {"usage": {"input_tokens": 10}}},
        {"_ng_task_index": 0, "reward": 0.0, "steps": 5},
        {"_ng_task_index": 1, "reward": 0.5, "steps": 4},
    ]
    found = metrics_of(rows, "plain")
    assert set(found) == {"agent_metrics", "key_metrics", "group_level_metrics"}
    assert found["agent_metrics"]["mean/reward"] == 0.5
    assert found["agent_metrics"]["mean/steps"] == 4.0
    assert found["agent_metrics"]["mean/input_tokens"] == 10.0
    assert [group["mean/reward"] for group in found["group_level_metrics"]] == [0.5, 0.5]


@pytest.mark.parametrize("name", ["verify", "seed_session", "health"])
def test_a_tool_with_the_name_of_a_path_is_refused(kit: Any, name: str) -> None:
    class Shadowed(kit.Memory):
        TOOL = {**kit.Memory.TOOL, "name": name}

    with pytest.raises(ConfigError, match=f"the tool '{name}'"):
        environment_app(Shadowed())


async def test_the_document_names_the_tools(kit: Any) -> None:
    async with kit.client_of(environment_app(kit.Memory())) as client:
        document = (await client.get("/openapi.json")).json()
    schema = document["paths"]["/remember"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["word"]

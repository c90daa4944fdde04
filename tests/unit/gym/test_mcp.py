"""Tools of a real MCP server, over its input and output and over HTTP on loopback."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import servers

from regimen.errors import ConfigError, GymError
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, ToolError, load_environment

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason="needs mcp")

SERVER = '''
import sys, time
from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
notes = []

@server.tool()
def add_note(text: str) -> str:
    """Keep a note."""
    notes.append(text)
    return f"{len(notes)} notes"

@server.tool()
def divide(a: int, b: int) -> int:
    """A whole quotient."""
    return a // b

@server.tool()
def wait(seconds: float) -> str:
    """Take a while."""
    time.sleep(seconds)
    return "done"

if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run()
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mcp") / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture(scope="module")
def environment(script: Path) -> Environment:
    servers = {"notes": {"command": sys.executable, "args": [str(script)], "seconds": 20}}
    return load_environment("calculator", {"mcp_servers": servers})


@pytest.fixture(scope="module")
def url(script: Path) -> Iterator[str]:
    port = servers.free_port()
    process = subprocess.Popen([sys.executable, str(script), str(port)], stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    else:
        pytest.fail("the server did not start")
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


def test_tasks_list_the_tools_beside_the_environment_s_own(environment: Environment) -> None:
    plain = load_environment("calculator").tasks("train", 1)[0]
    task = environment.tasks("train", 1)[0]
    tools = task.row["responses_create_params"]["tools"]
    assert [tool["name"] for tool in tools] == ["calculator", "add_note", "divide", "wait"]
    assert tools[1]["description"] == "Keep a note."
    assert tools[2]["parameters"]["required"] == ["a", "b"]
    assert json.loads(json.dumps(task.row)) == task.row
    assert plain.row["responses_create_params"]["tools"] == tools[:1]


async def test_each_episode_has_its_own_session_and_is_judged_as_before(environment: Environment) -> None:
    task = environment.tasks("train", 1)[0]
    first, second = await environment.seed(task), await environment.seed(task)
    try:
        assert await environment.call(first, "add_note", {"text": "a"}) == "1 notes"
        assert await environment.call(first, "add_note", {"text": "b"}) == "2 notes"
        assert await environment.call(second, "add_note", {"text": "c"}) == "1 notes"
        assert await environment.call(first, "calculator", {"expression": "2 + 3"}) == "5"
        assert await environment.call(first, "divide", {"a": 7, "b": 2}) == "3"
        with pytest.raises(ToolError):
            await environment.call(first, "divide", {"a": 7, "b": 0})
        with pytest.raises(ToolError):
            await environment.call(first, "divide", {"a": 7})
        with pytest.raises(ToolError, match="unknown tool"):
            await environment.call(first, "no_such_tool", {})
        assert (await environment.verify(first, task, [message("no")])).reward == 0.0
    finally:
        await environment.close(first)
        await environment.close(second)


async def test_an_environment_that_observes_does_so_beside_the_tools(script: Path) -> None:
    options = {"mcp_servers": {"notes": {"command": sys.executable, "args": [str(script)]}}}
    environment = load_environment("gridworld", options)
    [task] = environment.tasks("train", 1)
    session = await environment.seed(task)
    try:
        assert await environment.call(session, "add_note", {"text": "go"}) == "1 notes"
        solved = await environment.solve(session, task)
        assert solved is not None
        assert (await environment.verify(session, task, solved)).reward == 1.0
    finally:
        await environment.close(session)


async def test_a_call_that_takes_too_long_fails_the_episode(script: Path) -> None:
    servers = {"notes": {"command": sys.executable, "args": [str(script)], "seconds": 10}}
    environment = load_environment("calculator", {"mcp_servers": servers})
    task = environment.tasks("train", 1)[0]
    session = await environment.seed(task)
    notes = session.connections["notes"]
    notes.server = msgspec.structs.replace(notes.server, seconds=0.2)
    with pytest.raises(GymError, match="wait failed"):
        await environment.call(session, "wait", {"seconds": 3})
    await environment.close(session)


async def test_a_server_that_runs_is_reached_by_http(url: str) -> None:
    environment = load_environment("calculator", {"mcp_servers": {"notes": {"url": url}}})
    task = environment.tasks("train", 1)[0]
    session = await environment.seed(task)
    assert await environment.call(session, "divide", {"a": 9, "b": 2}) == "4"
    await environment.close(session)


def test_a_server_that_does_not_start_is_named() -> None:
    servers = {"broken": {"command": sys.executable, "args": ["-c", "pass"]}}
    with pytest.raises(GymError, match="MCP server 'broken' failed"):
        load_environment("calculator", {"mcp_servers": servers}).tasks("train", 1)


@pytest.mark.parametrize(
    ("servers", "problem"),
    [
        ({}, "names with a command or a url"),
        ({"a": {}}, "both or neither"),
        ({"a": {"command": "x", "url": "http://127.0.0.1"}}, "both or neither"),
        ({"a": {"comand": "x"}}, "did you mean 'command'"),
        ({"a": {"url": "http://example.com/mcp"}}, "on this machine"),
        ({"a": {"command": 3}}, "Expected"),
        ({"a": {"command": "x", "seconds": 0}}, "more than 0"),
    ],
)
def test_refusals(servers: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_environment("calculator", {"mcp_servers": servers})


def test_two_tools_of_one_name_are_refused(script: Path) -> None:
    server = {"command": sys.executable, "args": [str(script)]}
    with pytest.raises(ConfigError, match="two tools are called 'add_note'"):
        load_environment("calculator", {"mcp_servers": {"a": server, "b": server}}).tasks("train", 1)

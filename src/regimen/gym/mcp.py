"""Tools of MCP servers, for any environment.

In: servers by name, each `command` with `args`, `env` and `cwd` (started for each episode, over its input and output),
or the `url` of one that runs (streamable HTTP); `seconds` bounds each answer of it. Out: the environment's class with
their tools beside its own: task rows list them, and an episode has a session with each server.
What a tool itself refuses is told to the model; a server that does not start, answer in time or stay fails the episode.
Refuses: a missing package, other keys, plain HTTP to another machine, two tools of one name.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

from regimen.errors import ConfigError, GymError
from regimen.gym.environment import Environment, Split, Task, ToolError, Verdict
from regimen.registry import did_you_mean
from regimen.rollouts.messages import chat_tools

SECONDS = 30.0
START_SECONDS = 60.0
CLOSE_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_PAGES = 100
Result = TypeVar("Result")


class McpServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach a server: by the command that starts it, or by the address of one that runs."""

    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    seconds: float = SECONDS

    def target(self) -> Any:
        """What the package's client connects to."""
        if self.url is not None:
            return self.url
        parameters = importlib.import_module("mcp.client.stdio").StdioServerParameters
        return parameters(command=self.command, args=self.args, env=self.env or None, cwd=self.cwd)


def with_mcp_servers(kind: type[Environment], given: object) -> type[Environment]:
    """`kind` with the tools of servers."""
    if kind.answers_turns:
        raise ConfigError(f"environment {kind.name!r} takes no other tools than its own", where="mcp_servers")
    servers = read_servers(given)
    tools: dict[str, list[dict[str, Any]]] = {}

    def listed() -> dict[str, list[dict[str, Any]]]:
        if not tools:
            tools.update(_listed(servers))
        return tools

    class WithTools(kind):
        def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
            return [_with_tools(task, listed()) for task in super().tasks(split, num_tasks)]

        async def seed(self, task: Task) -> Any:
            owners = {tool["name"]: name for name, found in (await asyncio.to_thread(listed)).items() for tool in found}
            session = _Session({}, owners, None)
            try:
                for name, server in servers.items():
                    session.connections[name] = await Connection.open(name, server)
                session.inner = await super().seed(task)
            except BaseException:
                await session.close()
                raise
            return session

        async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
            owner = session.owners.get(name) if isinstance(session, _Session) else None
            if owner is None:
                return await super().call(_inner(session), name, arguments)
            return await session.connections[owner].call(name, arguments)

        async def observe(self, session: Any, output: list[dict[str, Any]]) -> str | None:
            return await super().observe(_inner(session), output)

        async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
            return await super().verify(_inner(session), task, output)

        async def solve(self, session: Any, task: Task) -> list[dict[str, Any]] | None:
            return await super().solve(_inner(session), task)

        async def close(self, session: Any) -> None:
            try:
                await super().close(session.inner)
            finally:
                await session.close()

    WithTools.__name__ = WithTools.__qualname__ = kind.__name__
    return WithTools


def read_servers(given: object) -> dict[str, McpServer]:
    """The servers of an option `mcp_servers`."""
    where = "mcp_servers"
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"is {given!r}", where=where, expected="names with a command or a url each")
    if importlib.util.find_spec("mcp") is None:
        raise ConfigError("the package mcp is not installed", where=where, fix="pip install 'regimen-rl[mcp]'")
    servers: dict[str, McpServer] = {}
    for name, options in cast("Mapping[object, object]", given).items():
        servers[str(name)] = _server(f"{where}.{name}", options)
    return servers


def _server(where: str, options: object) -> McpServer:
    known = [field.name for field in msgspec.structs.fields(McpServer)]
    for key in cast("Mapping[object, object]", options) if isinstance(options, Mapping) else ():
        if key not in known:
            fix = did_you_mean(str(key), known)
            raise ConfigError(f"unknown key {key!r}", where=where, expected=f"one of {', '.join(known)}", fix=fix)
    try:
        server = msgspec.convert(options, McpServer)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), where=where) from None
    if (server.command is None) == (server.url is None):
        raise ConfigError("has both or neither of command and url", where=where, expected="one of them")
    if not server.seconds > 0:
        raise ConfigError(f"seconds is {server.seconds}", where=where, expected="more than 0")
    if server.url is not None:
        address = urlsplit(server.url)
        if address.scheme != "https" and not (address.scheme == "http" and address.hostname in LOOPBACK):
            raise ConfigError(
                f"url is {server.url!r}", where=where, expected="http on this machine (127.0.0.1), or https"
            )
    return server


class _Session:
    """An episode's connections, who owns which tool, and the environment's own session."""

    def __init__(self, connections: dict[str, Connection], owners: dict[str, str], inner: Any) -> None:
        self.connections, self.owners, self.inner = connections, owners, inner

    async def close(self) -> None:
        """End every connection, whatever becomes of the others."""
        found = await asyncio.gather(*(c.close() for c in self.connections.values()), return_exceptions=True)
        self.connections.clear()
        for error in found:
            if isinstance(error, BaseException):
                raise error


def _inner(session: Any) -> Any:
    """The environment's own session, which it hands to its own methods too."""
    return session.inner if isinstance(session, _Session) else session


class Connection:
    """A session with a server. Its client lives in one task, in which alone the package lets it begin and end."""

    def __init__(self, name: str, server: McpServer) -> None:
        self.name, self.server = name, server
        self._queue: asyncio.Queue[tuple[str, Any, asyncio.Future[Any]] | None] = asyncio.Queue()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def open(cls, name: str, server: McpServer) -> Connection:
        """Start or reach the server."""
        connection = cls(name, server)
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(connection._ready)
        except BaseException as error:
            connection._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await connection._task
            if isinstance(error, TimeoutError):
                raise GymError(
                    f"the MCP server {name!r} did not start in {START_SECONDS:g} seconds", where="mcp_servers"
                ) from error
            raise
        return connection

    async def _run(self) -> None:
        client_of = importlib.import_module("mcp").Client
        try:
            async with client_of(self.server.target(), read_timeout_seconds=self.server.seconds) as client:
                self._ready.set_result(None)
                while (asked := await self._queue.get()) is not None:
                    await _answered(client, *asked)
        except Exception as error:  # the boundary to a process of others: whoever waits hears of it
            self._fail(error)
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        failure = GymError(f"the MCP server {self.name!r} failed ({_reason(error)})", where="mcp_servers")
        if not self._ready.done():
            self._ready.set_exception(failure)
        while not self._queue.empty():
            asked = self._queue.get_nowait()
            if asked is not None and not asked[2].done():
                asked[2].set_exception(failure)

    async def _ask(self, what: str, arguments: Any) -> Any:
        if self._task.done():
            raise GymError(f"the connection to the MCP server {self.name!r} ended", where="mcp_servers")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((what, arguments, answer))
        limit = self.server.seconds + 1  # the client's own limit comes first, and tells the server
        try:
            return await asyncio.wait_for(answer, limit)
        except GymError:
            raise
        except Exception as error:
            where = f"MCP server {self.name!r}"
            raise GymError(f"{what} failed ({_reason(error)}); it had {limit - 1:g} seconds", where=where) from error

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Run a tool; what it refuses is a `ToolError`."""
        result = await self._ask(name, arguments)
        text = _text(result)
        if result.is_error:
            raise ToolError(text or f"Error: the tool '{name}' failed")
        return text

    async def tools(self) -> list[dict[str, Any]]:
        """The server's tools as function tools."""
        return await self._ask("", None)

    async def close(self) -> None:
        """End the session, and a server that was started for it."""
        self._queue.put_nowait(None)
        _, pending = await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        if pending:
            self._task.cancel()
            await asyncio.wait([self._task])


async def _answered(client: Any, what: str, arguments: Any, answer: asyncio.Future[Any]) -> None:
    """One request to the server: a call, or the list of tools where no tool is named."""
    try:
        value = await (client.call_tool(what, arguments) if what else _all_tools(client))
    except Exception as error:
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(value)


async def _all_tools(client: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            description = tool.description or tool.title or tool.name
            schema: dict[str, Any] = {"type": "object", "properties": {}, **tool.input_schema}
            found.append({"type": "function", "name": tool.name, "description": description, "parameters": schema})
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise GymError(f"the server lists tools on more than {MAX_PAGES} pages")


def _listed(servers: Mapping[str, McpServer]) -> dict[str, list[dict[str, Any]]]:
    """The tools of every server; asked in a thread, since this one may have an event loop that runs."""

    async def ask() -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for name, server in servers.items():
            connection = await Connection.open(name, server)
            try:
                found[name] = await connection.tools()
            finally:
                await connection.close()
        return found

    found = _in_thread(ask())
    names = [tool["name"] for listed in found.values() for tool in listed]
    _check_different(names, "mcp_servers")
    return found


def _in_thread(work: Coroutine[Any, Any, Result]) -> Result:
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # handed to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _with_tools(task: Task, tools: Mapping[str, list[dict[str, Any]]]) -> Task:
    params: dict[str, Any] = task.row["responses_create_params"]
    own: list[Any] = params.get("tools") or []
    added = [tool for listed in tools.values() for tool in listed]
    names = [tool["function"]["name"] for tool in chat_tools(params)]
    _check_different([*names, *(tool["name"] for tool in added)], f"task {task.index}")
    return Task(task.index, {**task.row, "responses_create_params": {**params, "tools": [*own, *added]}})


def _check_different(names: list[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two tools are called {name!r}", where=where, fix="use one of the servers at a time")


def _text(result: Any) -> str:
    """What a tool said, as text; other content is named."""
    parts: list[str] = []
    for block in result.content:
        kind = getattr(block, "type", "content")
        parts.append(block.text if kind == "text" else f"[{kind} that cannot be shown as text]")
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _reason(error: BaseException) -> str:
    """The first cause in groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

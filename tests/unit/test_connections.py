from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import servers

from regimen.endpoint import Endpoint
from regimen.errors import EndpointError


class Counting:
    """A server that counts connections; it answers after `delay` seconds."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.num_connections = 0
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(size))
                await asyncio.sleep(self.delay)
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{"a":1}')
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Counting, str]]:
    counting = Counting(0.05)
    async with await asyncio.start_server(counting, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield counting, f"http://127.0.0.1:{port}"


async def test_connections_are_as_many_as_requests_under_way_and_used_again(server: tuple[Counting, str]) -> None:
    counting, url = server
    endpoint = Endpoint(url)
    for _ in range(3):
        answers = await asyncio.gather(*(endpoint.post("/x", {"b": n}) for n in range(5)))
        assert answers == [{"a": 1}] * 5
    await endpoint.close()
    assert counting.num_connections == 5
    assert sorted(counting.bodies)[:3] == [b'{"b":0}'] * 3


async def test_a_request_that_is_cancelled_leaves_no_connection_to_be_used_again(server: tuple[Counting, str]) -> None:
    counting, url = server
    endpoint = Endpoint(url)
    cancelled = asyncio.create_task(endpoint.post("/x", {"late": 1}))
    await asyncio.sleep(0.02)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert await endpoint.post("/x", {"n": 2}) == {"a": 1}
    assert counting.num_connections == 2
    await endpoint.close()


async def test_a_server_that_is_gone_is_said() -> None:
    endpoint = Endpoint(f"http://127.0.0.1:{servers.free_port()}", max_tries=1)
    with pytest.raises(EndpointError, match="cannot connect"):
        await endpoint.post("/x", {})
    await endpoint.close()


async def test_what_python_writes_and_msgspec_does_not(server: tuple[Counting, str]) -> None:
    counting, url = server
    endpoint = Endpoint(url)
    await endpoint.post("/x", {"half": "\ud800", "large": 2**70})
    await endpoint.close()
    assert counting.bodies == [b'{"half": "\\ud800", "large": 1180591620717411303424}']

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from regimen.serving.answers import HEALTH_PATHS, Body, answering, health
from regimen.serving.guard import Guard, ServerLimits, is_deeper, is_loopback

TOKEN = "0123456789abcdef"


async def echo(_request: Request, body: Body) -> Body:
    return {"got": body}


async def fail(_request: Request, _body: Body) -> Body:
    raise RuntimeError("the password is hunter2")


APP = Starlette(
    routes=[
        Route("/echo", answering(echo), methods=["POST"]),
        Route("/fail", answering(fail), methods=["POST"]),
        *(Route(path, answering(health)) for path in HEALTH_PATHS),
    ]
)


async def test_a_json_object_reaches_the_handler(kit: Any) -> None:
    async with kit.client_of(APP) as client:
        assert (await client.post("/echo", json={"a": [1]})).json() == {"got": {"a": [1]}}
        assert (await client.post("/echo")).json() == {"got": {}}


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN.upper()}", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
    ],
)
async def test_only_the_token_opens(authorization: str | None, status: int, kit: Any) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    async with kit.client_of(APP, token=TOKEN) as client:
        response = await client.post("/echo", json={}, headers=headers)
        assert response.status_code == status
        assert ("www-authenticate" in response.headers) == (status == 401)
        assert TOKEN not in response.text
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
    ],
)
async def test_without_a_token_only_this_machines_names_are_answered(host: str, status: int, kit: Any) -> None:
    async with kit.client_of(APP) as client:
        assert (await client.post("/echo", json={}, headers={"host": host})).status_code == status
    async with kit.client_of(APP, token=TOKEN) as client:
        headers = {"host": host, "authorization": f"Bearer {TOKEN}"}
        assert (await client.post("/echo", json={}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{}", "text/plain", 415, "wrong_type"),
        (b"{}", "application/x-www-form-urlencoded", 415, "wrong_type"),
        (b"{", "application/json", 400, "not_json"),
        (b"[1]", "application/json", 400, "not_object"),
        (b"NaN", "application/json", 400, "not_json"),
        (b'{"a": 1e999}', "application/json", 400, "not_json"),
        (b'{"a": "\\ud800"}', "application/json", 400, "not_json"),
        (b'{"a": "\xff"}', "application/json", 400, "not_json"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "application/json", 400, "not_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_request"),
        (b'{"a":' * 100_000, "application/json", 400, "invalid_request"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "application/json", 400, "invalid_request"),
    ],
    ids=range(12),
)
async def test_bodies_that_are_refused(content: bytes, kind: str, status: int, code: str, kit: Any) -> None:
    async with kit.client_of(APP) as client:
        response = await client.post("/echo", content=content, headers={"content-type": kind})
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_depth_counts_lists_and_objects(kit: Any) -> None:
    value: Any = 1
    for _ in range(5):
        value = {"a": [value]}
    assert is_deeper(value, 9)
    assert not is_deeper(value, 10)
    assert not is_deeper({"a": [1] * 10, "b": "[[[["}, 2)


async def test_a_body_too_large_is_refused_declared_or_not(kit: Any) -> None:
    limits = ServerLimits(body_bytes=1000)
    sent = 0

    async def drip() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 100
            yield b" " * 100

    headers = {"content-type": "application/json"}
    async with kit.client_of(APP, limits) as client:
        assert (await client.post("/echo", content=b" " * 1001, headers=headers)).status_code == 413
        assert (await client.post("/echo", content=b"{}" + b" " * 998, headers=headers)).status_code == 200
    with kit.running(APP, limits) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post("/echo", content=drip(), headers=headers)).status_code == 413


async def test_no_more_requests_at_once_than_the_limit(kit: Any) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(_request: Request, _body: Body) -> Body:
        entered.set()
        await release.wait()
        return {}

    app = Starlette(routes=[Route("/wait", answering(wait), methods=["POST"])])
    async with kit.client_of(app, ServerLimits(requests=1)) as client:
        first = asyncio.create_task(client.post("/wait", json={}))
        await entered.wait()
        second = await client.post("/wait", json={})
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        release.set()
        assert (await first).status_code == 200
        assert (await client.post("/wait", json={})).status_code == 200


async def test_a_failure_shows_neither_traceback_nor_secret(kit: Any) -> None:
    async with kit.client_of(APP) as client:
        response = await client.post("/fail", json={})
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "unexpected RuntimeError"
        assert "hunter2" not in response.text


async def test_work_ends_when_the_client_goes_away(kit: Any) -> None:
    ended: list[str] = []

    async def work(_request: Request, _body: Body) -> Body:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return {}

    guard = Guard(Starlette(routes=[Route("/work", answering(work), methods=["POST"])]))
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        found = next(messages, None)
        if found is None:
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}
        return found

    async def send(_message: Any) -> None:
        raise AssertionError("nobody is there to hear it")

    scope = {"type": "http", "method": "POST", "path": "/work", "headers": [], "query_string": b""}
    await asyncio.wait_for(guard(scope, receive, send), 5)
    assert (ended, guard.num_requests) == (["cancelled"], 0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("box", False)],
)
def test_loopback(host: str, expected: bool, kit: Any) -> None:
    assert is_loopback(host) is expected


def raw(url: str, content: bytes, seconds: float) -> tuple[bytes, float]:
    """What a server answers to bytes, until it closes; and how long that took."""
    host, port = url.removeprefix("http://").split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(content)
        chunks: list[bytes] = []
        try:
            while chunk := connection.recv(65536):
                chunks.append(chunk)
        except TimeoutError:
            return b"(still open)", time.monotonic() - began
    return b"".join(chunks), time.monotonic() - began


def test_slow_clients_are_let_go(kit: Any) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n"
    with kit.running(APP, ServerLimits(header_seconds=0.3, body_seconds=0.3)) as url:
        answer, seconds = raw(url, b"", 5)
        assert answer == b""
        assert 0.2 < seconds < 3
        answer, seconds = raw(url, b"POST /echo HTTP/1.1\r\nhost: loc", 5)
        assert answer == b""
        assert 0.2 < seconds < 3
        answer, seconds = raw(url, head + b'{"a"', 5)
        assert answer.startswith(b"HTTP/1.1 408")
        assert seconds < 3
        whole = head.replace(b"10", b"2") + b"{}"
        answer, _ = raw(url, whole + b"POST /ec", 5)  # the rest of a second request never comes
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.split(b"\r\n\r\n")[1]) == {"got": {}}


def test_a_client_that_does_not_read_is_let_go(kit: Any) -> None:
    async def much(_request: Request, _body: Body) -> Body:
        return {"text": "x" * 50_000_000}

    app = Starlette(routes=[Route("/much", answering(much), methods=["POST"])])
    guard: list[Guard] = []

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if not guard:
            guard.append(Guard(app, ServerLimits(body_seconds=0.3)))
        await guard[0](scope, receive, send)

    with kit.running(guarded) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /much HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
            seen = set()
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and not (1 in seen and guard[0].num_requests == 0):
                seen |= {guard[0].num_requests} if guard else set()
                time.sleep(0.01)
        assert 1 in seen
        assert guard[0].num_requests == 0


def test_headers_that_are_not_http_are_refused(kit: Any) -> None:
    with kit.running(APP) as url:
        for line in (b"x: a\x00b", b"x: a\rb", b"content-length: 2\r\ncontent-length: 3", b"x" * 70_000):
            answer, _ = raw(url, b"POST /echo HTTP/1.1\r\nhost: localhost\r\n" + line + b"\r\n\r\n", 5)
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), line[:20]
            assert b"server: uvicorn" not in answer

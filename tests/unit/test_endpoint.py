from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from regimen.endpoint import Endpoint
from regimen.errors import EndpointError, UsageError

Answer = httpx.Response | Exception


class Server:
    """Answers from a list, and what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def endpoint(self, **settings: Any) -> Endpoint:
        settings = {"first_wait": 0.0, "max_tries": 4, **settings}
        return Endpoint("http://box:1/v1/", transport=httpx.MockTransport(self), **settings)


def ok() -> httpx.Response:
    return httpx.Response(200, json={"a": 1})


async def test_the_key_is_sent_and_the_answer_returned() -> None:
    server = Server(ok())
    assert await server.endpoint(key="k").post("/x", {"b": 2}) == {"a": 1}
    (request,) = server.requests
    assert (str(request.url), request.headers["authorization"]) == ("http://box:1/v1/x", "Bearer k")


@pytest.mark.parametrize(
    "passing",
    [
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("cut off"),
    ],
    ids=str,
)
async def test_what_may_pass_is_tried_again(passing: Answer) -> None:
    server = Server(passing, passing, ok())
    assert await server.endpoint().post("/x", {}) == {"a": 1}
    assert len(server.requests) == 3


async def test_tries_end() -> None:
    server = Server(*[httpx.Response(503, json={"error": {"message": "full"}}) for _ in range(9)])
    with pytest.raises(EndpointError, match=r"box:1/v1/x: status 503: full \(4 tries in 0 s\)") as error:
        await server.endpoint().post("/x", {})
    assert (len(server.requests), error.value.status, error.value.body) == (4, 503, '{"error":{"message":"full"}}')


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.Response(400, json={"detail": "bad row"}), "status 400: bad row"),
        (httpx.Response(401, text="who?"), "status 401: who"),
        (httpx.Response(404, json=[1]), r"status 404: \[1\]"),
        (httpx.Response(307, headers={"location": "http://evil"}), "status 307"),
        (httpx.Response(200, text="<html>"), "not JSON"),
        (httpx.Response(200, json=[1]), "no JSON object"),
        (httpx.ReadTimeout("slow"), "no answer in time"),
    ],
    ids=str,
)
async def test_what_will_not_pass_is_not_tried_again(answer: Answer, says: str) -> None:
    server = Server(answer)
    with pytest.raises(EndpointError, match=says):
        await server.endpoint().post("/x", {})
    assert len(server.requests) == 1


async def test_the_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    later = [httpx.Response(429, headers={"retry-after": value}) for value in ("7", "Wed, 21 Oct 2015", "9999")]
    await Server(*later, ok()).endpoint(first_wait=0.5).post("/x", {})
    assert waited[0] == 7
    assert 0.5 <= waited[1] <= 1.5  # twice the first wait, spread by half
    assert waited[2] == 60


@pytest.mark.parametrize("url", ["box:1", "ftp://box", "http://", "http://user:password@box"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError) as error:
        Endpoint(url)
    assert "password@" not in str(error.value)

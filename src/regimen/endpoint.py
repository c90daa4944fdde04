"""Asking a server over HTTP, for the two rooms that do: model endpoints and gyms.

In: an address, a key, JSON. Out: JSON. What may pass (no connection, 408, 429, 5xx) is tried again a few times, ever
later, or when the server says. Refuses the rest with `EndpointError`: other statuses, answers that are no JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING, Any, cast
from urllib.request import getproxies, proxy_bypass

import msgspec

from regimen.errors import EndpointError, UsageError

if TYPE_CHECKING:
    import httpx

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0
_KEPT_BODY = 2000
_JSON = {"content-type": "application/json"}
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Endpoint:
    """A server at `base_url`; `key` is sent as a bearer token. Each try may take `seconds`."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        seconds: float = 600.0,
        max_tries: int = 6,
        first_wait: float = 0.5,
        retried: frozenset[int] = RETRIED,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx  # an optional dependency

        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise UsageError("is no address of a server", where=base_url, expected="http://HOST:PORT")
        if url.userinfo:
            raise UsageError("the address holds a password", where=url.host, fix="give the key in its variable")
        self.base_url = base_url.rstrip("/")
        self.max_tries = max_tries
        self.first_wait = first_wait
        self.retried = retried
        self._random = random.Random(0)
        if transport is None and not _needs_proxy(url.host):
            from regimen.connections import Connections

            transport = Connections()
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(seconds, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=url.host not in _LOCAL,  # a proxy reaches no server of this machine
            transport=transport,
        )

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that the server answers with."""
        response = await self._ask("POST", path, body)
        return self._object(response, path)

    async def get_text(self, path: str) -> str:
        """What the server answers with, as text."""
        return (await self._ask("GET", path, None)).text

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """The answer of the first try that succeeds."""
        began = time.monotonic()
        for attempt in range(1, self.max_tries + 1):
            try:
                return await self._try(method, path, body)
            except _PassingError as passing:
                if attempt == self.max_tries:
                    error = passing.error
                    seconds = time.monotonic() - began
                    raise EndpointError(
                        f"{error.message} ({attempt} tries in {seconds:.0f} s)",
                        where=error.where,
                        fix=error.fix,
                        status=error.status,
                        body=error.body,
                    ) from None
                await asyncio.sleep(self._wait(attempt, passing.retry_after))
        raise AssertionError("unreachable: the last try returns or raises")

    async def _try(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        import httpx

        where = f"{self.base_url}{path}"
        try:
            content = None if body is None else _encoded(body)
            response = await self._client.request(method, where, content=content, headers=_JSON if content else None)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            unreachable = EndpointError(
                f"cannot connect ({error or type(error).__name__})", where=where, fix="is the server running?"
            )
            raise _PassingError(unreachable) from error
        except httpx.ReadTimeout as error:  # it is at work; asking again would give it twice the work
            raise EndpointError("no answer in time", where=where) from error
        except httpx.HTTPError as error:
            raise _PassingError(EndpointError(f"{error or type(error).__name__}", where=where)) from error
        if response.is_success:
            return response
        said = response.text[:_KEPT_BODY]
        failed = EndpointError(
            f"status {response.status_code}: {_message(said)}", where=where, status=response.status_code, body=said
        )
        if response.status_code in self.retried:
            raise _PassingError(failed, response.headers.get("retry-after"))
        raise failed

    def _wait(self, attempt: int, retry_after: str | None) -> float:
        """Seconds to wait: what the server says, else twice as long each time, spread so that clients part."""
        try:
            asked = float(retry_after or "")
        except ValueError:
            asked = 0.0
        grown = self.first_wait * 2 ** (attempt - 1) * (0.5 + self._random.random())
        return min(max(asked, grown, 0.0), _LONGEST_WAIT)

    def _object(self, response: httpx.Response, path: str) -> dict[str, Any]:
        where = f"{self.base_url}{path}"
        try:
            value = _decoded(response)
        except (ValueError, RecursionError):
            raise EndpointError(
                "the answer is not JSON", where=where, status=response.status_code, body=response.text[:_KEPT_BODY]
            ) from None
        if not isinstance(value, dict):
            raise EndpointError("the answer is no JSON object", where=where, status=response.status_code)
        return cast("dict[str, Any]", value)


def _needs_proxy(host: str) -> bool:
    """Whether the environment names a proxy for a host."""
    return host not in _LOCAL and bool(getproxies()) and not proxy_bypass(host)


def _encoded(body: dict[str, Any]) -> bytes:
    """JSON; what msgspec cannot write (half characters, numbers of more than 64 bits) is written as Python does."""
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(body).encode()


def _decoded(response: httpx.Response) -> object:
    """The JSON of an answer; what msgspec refuses, like NaN, is read as Python does."""
    try:
        return msgspec.json.decode(response.content)
    except (msgspec.DecodeError, ValueError):
        return cast("object", response.json())


class _PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, error: EndpointError, retry_after: str | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


def _message(said: str) -> str:
    """The message in an error's body, in the usual shapes, else the body."""
    try:
        value: Any = json.loads(said)
        error: Any = value.get("error", value.get("detail", value))
        text = cast("dict[str, Any]", error).get("message", said) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = said
    return " ".join(str(cast("object", text)).split())[:300]

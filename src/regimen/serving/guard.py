"""The guard in front of every server: who may ask, how much, how deep, how slowly, how many at once.

In: an ASGI application and `ServerLimits`. Out: an ASGI application whose handlers find a parsed JSON object.
Refuses: requests without the token (401), under a name that is not this machine's where there is no token (421), bodies
too large (413), too slow (408), too deep or not JSON (400), of another content type (415), more requests at once than
the limit (503). A client that goes away has its work cancelled, one that does not read
its answer is let go.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

import msgspec

from regimen.errors import RequestError
from regimen.serving.answers import BODY_KEY, HEALTH_PATHS, failed

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_DRAINED_BYTES = 1 << 20
_DRAINED_SECONDS = 0.5


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a server takes at most. Times are in seconds."""

    body_bytes: int = 32 << 20
    depth: int = 64
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    requests: int = 1024
    connections: int = 4096
    sessions: int = 4096
    session_seconds: float = 3600.0
    call_seconds: float = 120.0
    episode_seconds: float = 1800.0


class _UnreadError(Exception):
    """A client does not read its answer."""


class Guard:
    """See the module. Without a `token` only clients that name this machine are answered."""

    def __init__(self, app: Application, limits: ServerLimits | None = None, token: str | None = None) -> None:
        self.app = app
        self.limits = limits or ServerLimits()
        self.token = token.encode() if token else None
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1003})
        try:
            self._check_caller(scope)
            if self.num_requests >= self.limits.requests:
                raise RequestError(f"{self.num_requests} requests are under way", status=503, code="busy")
        except RequestError as error:
            await _drain(receive)
            return await _refuse(error, scope, receive, send)
        self.num_requests += 1
        try:
            await self._admit(scope, receive, send)
        finally:
            self.num_requests -= 1
        return None

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            content = await self._read(scope, receive)
        except RequestError as error:
            if error.status == 413:
                await _drain(receive)
            return await _refuse(error, scope, receive, send)
        try:
            scope[BODY_KEY] = self._parse(scope, content)
        except RequestError as error:
            return await _refuse(error, scope, receive, send)
        try:
            return await _while_connected(self.app, scope, receive, self._in_time(send))
        except _UnreadError:
            return None

    def _in_time(self, send: Send) -> Send:
        """`send`, which of itself would wait forever for a client that does not read."""

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    await send(message)
            except TimeoutError:
                raise _UnreadError from None

        return send_in_time

    def _check_caller(self, scope: Scope) -> None:
        if scope["path"] in HEALTH_PATHS:
            return
        if self.token is not None:
            scheme, _, given = header(scope, b"authorization").partition(b" ")
            # compare_digest of the two takes the same time wherever they differ.
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
                raise RequestError(
                    "no valid bearer token", status=401, code="unauthorized", expected="Authorization: Bearer TOKEN"
                )
        elif not _names_this_machine(header(scope, b"host")):
            # A web page whose name was made to point here would arrive under that name.
            raise RequestError(
                "the Host header names another machine", status=421, code="wrong_host", expected="a loopback address"
            )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = header(scope, b"content-length")
        if declared.isdigit() and int(declared[:20]) > self.limits.body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError("the client went away", code="disconnected")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self.limits.body_bytes:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestError(
                f"the body took longer than {self.limits.body_seconds:g} seconds", status=408, code="too_slow"
            ) from None
        return b"".join(chunks)

    def _too_large(self) -> RequestError:
        return RequestError(
            "the body is too large", status=413, code="too_large", expected=f"at most {self.limits.body_bytes} bytes"
        )

    def _parse(self, scope: Scope, content: bytes) -> dict[str, Any]:
        """The JSON object of a body; {} for none."""
        if not content or scope["method"] in ("GET", "HEAD"):
            return {}
        kind = header(scope, b"content-type").partition(b";")[0].strip().lower()
        # A web page may send text/plain anywhere without asking; JSON needs the server's consent.
        if kind != b"application/json":
            raise RequestError("the body is not JSON", status=415, code="wrong_type", expected="application/json")
        try:
            value = cast("object", msgspec.json.decode(content))
        except RecursionError:
            raise self._too_deep() from None
        except (msgspec.DecodeError, ValueError) as error:
            raise RequestError(f"the body is not JSON ({error})", code="not_json") from None
        if not isinstance(value, dict):
            raise RequestError("the body is not an object", code="not_object", expected="a JSON object")
        body = cast("dict[str, Any]", value)
        if is_deeper(body, self.limits.depth):
            raise self._too_deep()
        return body

    def _too_deep(self) -> RequestError:
        return RequestError("the body is nested too deeply", expected=f"at most {self.limits.depth} levels")


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of that name; b"" without one."""
    headers = cast("list[tuple[bytes, bytes]]", scope["headers"])
    return next((value for key, value in headers if key.lower() == name), b"")


def is_deeper(value: object, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels."""
    level = [value]
    for _ in range(depth):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: object) -> list[object]:
    """The lists and objects directly inside a list or an object."""
    if isinstance(node, dict):
        values = list(cast("dict[str, object]", node).values())
    else:
        values = cast("list[object]", node)
    return [value for value in values if type(value) in (dict, list)]


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _names_this_machine(value: bytes) -> bool:
    """Whether a Host header is a loopback address; HTTP/1.0 clients send none, browsers always do."""
    if not value:
        return True
    text = value.decode("latin-1")
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return is_loopback(name)


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the error and end the connection."""
    response = failed(error)
    response.headers["connection"] = "close"
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    await response(scope, receive, send)


async def _drain(receive: Receive) -> None:
    """Read what is left of a body, up to a bound: a connection that is closed over unread data loses the answer."""
    left = _DRAINED_BYTES
    try:
        async with asyncio.timeout(_DRAINED_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _while_connected(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application, and cancel it when the client goes away."""
    gone = asyncio.create_task(_disconnected(receive))

    async def receive_nothing() -> Message:
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    work = asyncio.ensure_future(app(scope, receive_nothing, send))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    finally:
        gone.cancel()
        work.cancel()
    if not work.cancelled() and (error := work.exception()):
        raise error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue

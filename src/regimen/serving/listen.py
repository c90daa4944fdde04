"""Listening: which address with which token, and a server that does not wait forever for slow clients.

In: an ASGI application, a host and a port. Out: a running server. Refuses: another address than loopback without a
token, token files that others can read, short tokens, an address that is taken.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from regimen.errors import UsageError
from regimen.serving.guard import Application, Guard, ServerLimits, is_loopback

TOKEN_VARIABLE = "REGIMEN_SERVER_TOKEN"  # noqa: S105 - a name, not a token
SHORTEST_TOKEN = 16
_HEADER_BYTES = 64 << 10


class Token(msgspec.Struct, frozen=True):
    """The token that clients must send; `is_new` when it was made here and must be shown."""

    value: str
    is_new: bool = False


def token_for(host: str, token_file: Path | None) -> Token | None:
    """The token of a file, of the environment variable, or a new one where the address is not loopback."""
    if token_file is not None:
        return Token(_checked(_read(token_file), str(token_file)))
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None:
        return Token(_checked(given.strip(), TOKEN_VARIABLE))
    return None if is_loopback(host) else Token(secrets.token_urlsafe(32), is_new=True)


def _read(path: Path) -> str:
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path), fix="write a token of your own into it")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UsageError("others may read the token file", where=str(path), fix=f"chmod 600 {path}")
    return path.read_text(encoding="utf-8").strip()


def _checked(token: str, where: str) -> str:
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            "the token is too short or holds other than printable ASCII characters",
            where=where,
            expected=f"at least {SHORTEST_TOKEN} characters without spaces",
        )
    return token


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `UsageError` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(reason, where=f"{host}:{port}", fix="choose another --host or --port") from None


def server_of(app: Application, limits: ServerLimits, token: str | None) -> uvicorn.Server:
    """The server of an application behind the guard."""
    config = uvicorn.Config(
        Guard(app, limits, token),
        http=_patient(limits.header_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, min(5, int(limits.header_seconds))),
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _patient(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which of itself would wait forever for the rest of a request's head."""

    class PatientProtocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # Head and body are sent apart: without this the body waits for the client to acknowledge the head, which
            # it puts off for 40 ms. asyncio sets it only on sockets that were made with the protocol's number.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_answering():
                self._stop_waiting()
            elif self._waiting is None:
                self._expect_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            self._waiting = self.loop.call_later(seconds, self._give_up)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _give_up(self) -> None:
            self._waiting = None
            if not self._is_answering():
                self.transport.close()

        def _is_answering(self) -> bool:
            cycle: Any = self.cycle  # None before the first request, whatever its type says
            return cycle is not None and not cycle.response_complete

    return PatientProtocol


def address_of(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = _name(listening)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _name(listening: socket.socket) -> tuple[str, int]:
    name: Any = listening.getsockname()
    return str(name[0]), int(name[1])

"""The sessions of an environment server: opened by a seed, found by a cookie, closed once.

In: tasks and an environment. Out: sessions, whose calls run one after the other. Sessions that were verified are the
first to go when room is needed; those that are too old are closed. Refuses: more open sessions than the limit.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from regimen.errors import RequestError
from regimen.gym.environment import Environment, Task
from regimen.serving.guard import ServerLimits

_KEPT_CLOSED = 10_000
_log = logging.getLogger("regimen.serving")


class Session:
    """One episode's state on the server. `name` is what a caller called it; the cookie is `key`."""

    def __init__(self, task: Task, state: Any, opened: float, name: str | None) -> None:
        self.key = secrets.token_urlsafe(32)
        self.task = task
        self.state = state
        self.opened = opened
        self.name = name
        self.is_verified = False
        self.output: list[dict[str, Any]] = []  # of an episode that is played by steps
        self.num_steps = 0
        self.is_over = False
        self.step_id: str | None = None  # of the last step, and what it was answered, or what it failed with
        self.reply: dict[str, Any] | Exception = {}
        self.turn = asyncio.Lock()


class Sessions:
    """The open sessions of one environment."""

    def __init__(
        self, environment: Environment, limits: ServerLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.environment = environment
        self.limits = limits
        self.clock = clock
        self._open: OrderedDict[str, Session] = OrderedDict()  # oldest first
        self._named: dict[str, Session] = {}
        self._closed_names: OrderedDict[str, None] = OrderedDict()
        self._num_opening = 0

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, task: Task, name: str | None = None) -> Session:
        """Seed an episode. A name that is open gives its session again; one that was closed stays closed."""
        if name is not None and name in self._closed_names:
            raise RequestError(f"the session {name[:80]!r} was closed", status=409, code="session_closed")
        if name is not None and name in self._named:
            return self._named[name]
        await self._make_room()
        self._num_opening += 1
        try:
            async with asyncio.timeout(self.limits.call_seconds):
                state = await self.environment.seed(task)
        finally:
            self._num_opening -= 1
        session = Session(task, state, self.clock(), name)
        self._open[session.key] = session
        if name is not None:
            if name in self._named or name in self._closed_names:  # while this one was being seeded
                await self.close(session)
                return await self.open(task, name)
            self._named[name] = session
        return session

    def find(self, key: str | None) -> Session | None:
        """The open session of a cookie."""
        session = self._open.get(key or "")
        return session if session is not None and not self._is_old(session) else None

    def named(self, name: str) -> Session | None:
        """The open session that a caller gave this name."""
        return self._named.get(name)

    async def close(self, session: Session) -> None:
        """End an episode; a second time does nothing."""
        if self._open.pop(session.key, None) is None:
            return
        if session.name is not None and self._named.get(session.name) is session:
            del self._named[session.name]
        async with session.turn:
            try:
                async with asyncio.timeout(self.limits.call_seconds):
                    await self.environment.close(session.state)
            except Exception:  # the episode is over; what the environment could not free is its own matter
                _log.exception("closing a session failed")

    async def close_name(self, name: str) -> None:
        """End the episode of that name, and keep a late seed from opening it again."""
        self._closed_names[name] = None
        while len(self._closed_names) > _KEPT_CLOSED:
            self._closed_names.popitem(last=False)
        session = self._named.get(name)
        if session is not None:
            await self.close(session)

    async def close_all(self) -> None:
        """End every episode."""
        for session in list(self._open.values()):
            await self.close(session)

    def _is_old(self, session: Session) -> bool:
        return self.clock() - session.opened > self.limits.session_seconds

    async def _make_room(self) -> None:
        while self._open and self._is_old(next(iter(self._open.values()))):
            await self.close(next(iter(self._open.values())))
        if len(self._open) + self._num_opening < self.limits.sessions:
            return
        done = next((session for session in self._open.values() if session.is_verified), None)
        if done is None:
            raise RequestError(
                f"{len(self._open)} sessions are open", status=503, code="too_many_sessions", fix="close some"
            )
        await self.close(done)

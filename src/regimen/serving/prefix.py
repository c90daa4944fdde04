"""Paths as NeMo Gym writes them when it records model calls: `/ng-rollout/ID` stands before each path of an episode.

In: a request to `/ng-rollout/ID/PATH`. Out: the same request to `/PATH`; whose episode it is the cookie says. Every
other request passes as it is.
"""

from __future__ import annotations

import re

from regimen.serving.guard import Application, Receive, Scope, Send

_PREFIX = re.compile(r"/ng-rollout/[A-Za-z0-9][A-Za-z0-9._-]*(?=/)")


class WithoutPrefix:
    """See the module."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request under its own path."""
        found = _PREFIX.match(scope["path"]) if scope["type"] == "http" else None
        if found is not None:
            path: str = scope["path"][found.end() :]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)

"""Connections to one server, as many as there are requests under way.

In: requests of an `httpx` client. Out: whole answers. A request takes the connection that was used last, or opens one:
a pool that looks at all its connections for each request spends most of its time looking where a thousand are open.
Refuses nothing.
"""

from __future__ import annotations

import httpx

_KEPT = 256


class Connections(httpx.AsyncBaseTransport):
    """See the module. At most 256 connections are kept while nothing is asked."""

    def __init__(self) -> None:
        self._verify = httpx.create_ssl_context()
        self._free: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, read to its end."""
        connection = self._free.pop() if self._free else self._new()
        try:
            response = await connection.handle_async_request(request)
            await response.aread()
            await response.aclose()
        except BaseException:
            await connection.aclose()
            raise
        if len(self._free) < _KEPT:
            self._free.append(connection)
        else:
            await connection.aclose()
        return response

    def _new(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx.AsyncHTTPTransport(verify=self._verify, trust_env=False, limits=limits)

    async def aclose(self) -> None:
        """Close the connections that wait."""
        while self._free:
            await self._free.pop().aclose()

"""From handlers to HTTP answers: one shape for JSON, one for errors, and one place where failures become statuses.

In: functions of a request and its JSON body. Out: Starlette endpoints. A failure never shows a traceback to a client;
what nobody expected is logged and answered with status 500.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from regimen.errors import GenerationError, RegimenError, RequestError, RolloutError, TokenError

Body = dict[str, Any]
Handler = Callable[[Request, Body], Awaitable[Body | Response]]
Endpoint = Callable[[Request], Awaitable[Response]]
Kind = TypeVar("Kind")

BODY_KEY = "regimen.body"
HEALTH_PATHS = ("/health", "/healthz", "/livez", "/readyz")
# What a program raises over data it cannot use; the data came from the client.
DATA_ERRORS = (LookupError, TypeError, ValueError, AttributeError, RecursionError, ArithmeticError)
_SHORT = 500
_log = logging.getLogger("regimen.serving")


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return JSONResponse(value, status, headers=dict(headers or {}))


def error_body(message: str, code: str, status: int) -> Body:
    """The body of every error, in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def problem(message: str, status: int, code: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error answer."""
    return answer(error_body(message, code, status), status, headers)


def answering(handler: Handler) -> Endpoint:
    """The endpoint of a handler: hands it the parsed body, turns what it returns or raises into an answer."""

    async def endpoint(request: Request) -> Response:
        try:
            result = await handler(request, request.scope.get(BODY_KEY) or {})
            return result if isinstance(result, Response) else answer(result)
        except Exception as error:  # the boundary of a server: every failure is an answer
            return failed(error)

    return endpoint


def failed(error: Exception) -> Response:
    """The answer to an exception."""
    if isinstance(error, RequestError):
        headers = {"retry-after": "1"} if error.status in (429, 503) else None
        return problem(str(error), error.status, error.code, headers)
    if isinstance(error, GenerationError):
        _log.error("generation failed: %r", error)
        return problem(str(error), 500, "generation_failed")
    if isinstance(error, RolloutError | TokenError):
        return problem(str(error), 400, "invalid_request")
    if isinstance(error, RegimenError):
        return problem(str(error), 500, "failed")
    if isinstance(error, TimeoutError):
        return problem(str(error) or "timed out", 504, "timed_out")
    _log.error("a request failed", exc_info=error)
    return problem(f"unexpected {type(error).__name__}", 500, "unexpected")


def convert(body: Body, kind: type[Kind]) -> Kind:
    """The body as a record of `kind`. Raises `RequestError` naming the field that is wrong."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise RequestError(shortened(str(error)), code="invalid_request", where="body") from None


def shortened(text: str) -> str:
    """A text for an error message, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else text[:_SHORT] + "…"


async def not_found(request: Request, error: Exception) -> Response:
    """The answer of Starlette's own refusals: unknown path, wrong method."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    words = {404: f"there is no {request.url.path[:100]}", 405: f"{request.method} is not allowed here"}
    headers = error.headers if isinstance(error, HTTPException) else None
    return problem(words.get(status, "refused"), status, "not_found" if status == 404 else "refused", headers)


async def health(_request: Request, _body: Body) -> Body:
    """The server answers."""
    return {"status": "ok"}

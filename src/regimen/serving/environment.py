"""An environment over NeMo Gym's wire: what NeMo Gym calls a resources server.

In: an `Environment`. Out: a Starlette application with `/seed_session`, one path per tool, `/verify`,
`/close_session` and `/aggregate_metrics`, and with `/reset`, `/step` and `/close` what NeMo Gym calls a Gymnasium
server; the session travels in a cookie. What a tool says is the body of its answer, as text; a call that the tool
refuses has status 400 and the text for the model.
Refuses: rows that are no task rows, tool calls and verdicts without the session they belong to. A verdict that fails
is an error, never a reward.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from regimen.errors import GymError, RegimenError, RequestError, UsageError
from regimen.gym.agent import checked_arguments
from regimen.gym.aggregate import aggregate_metrics
from regimen.gym.environment import Environment, Task, ToolError, Verdict
from regimen.gym.protocol import observation_item, tool_output_item, verdict_fields
from regimen.rollouts.messages import chat_tools, input_messages
from regimen.rollouts.records import JUDGED
from regimen.serving.answers import (
    DATA_ERRORS,
    HEALTH_PATHS,
    Body,
    answer,
    answering,
    health,
    not_found,
    shortened,
)
from regimen.serving.guard import ServerLimits
from regimen.serving.openapi import environment_document
from regimen.serving.prefix import WithoutPrefix
from regimen.serving.sessions import Session, Sessions

COOKIE = "regimen_session"
# What `/reset` promises to NeMo Gym's agent: `/close` ends the episode, a step may be sent again.
_PROMISES = {"supports_explicit_close": True, "supports_step_idempotency": True}
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NAME_LENGTH = 200
Result = TypeVar("Result")


def environment_app(
    environment: Environment, limits: ServerLimits | None = None, extra: Sequence[Route] = ()
) -> Starlette:
    """The application; `extra` routes, those of an agent, come before those of the tools."""
    if environment.answers_turns:
        raise UsageError(
            f"environment {environment.name!r} answers whole turns, and the wire asks it call by call",
            expected="an environment with call and observe",
            fix="collect, evaluate or train with it here",
        )
    service = EnvironmentService(environment, limits or ServerLimits())

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        yield
        await service.sessions.close_all()

    document = environment_document(environment, with_agent=bool(extra))

    async def openapi(_request: Request, _body: Body) -> Body:
        return document

    def post(path: str, handler: Any) -> Route:
        return Route(path, answering(handler), methods=["POST"])

    routes = [
        *(Route(path, answering(health), methods=["GET"]) for path in HEALTH_PATHS),
        Route("/openapi.json", answering(openapi), methods=["GET"]),
        post("/seed_session", service.seed_session),
        post("/verify", service.verify),
        post("/reset", service.reset),
        post("/step", service.step),
        post("/close", service.close_session),
        post("/close_session", service.close_session),
        post("/aggregate_metrics", service.aggregate_metrics),
        *extra,
        post("/{tool}", service.call),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(WithoutPrefix)],
        lifespan=lifespan,
        exception_handlers={HTTPException: not_found},
    )


class EnvironmentService:
    """The handlers of an environment server."""

    def __init__(self, environment: Environment, limits: ServerLimits) -> None:
        self.environment = environment
        self.limits = limits
        self.sessions = Sessions(environment, limits)
        # An environment that keeps nothing per episode can be asked without a seed.
        self.is_stateless = type(environment).seed is Environment.seed

    async def seed_session(self, _request: Request, body: Body) -> Response:
        """Begin an episode. The body is a task row, or a task with a session id chosen by an environment server."""
        name = body.get("resources_session_id")
        if name is None:
            row = task_row(body)
        else:
            if not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH:
                raise RequestError("resources_session_id is no name", expected=f"1 to {_NAME_LENGTH} characters")
            row = _object(body, "task_data")
        session = await self._run(self.sessions.open(Task(task_index(row), row), name))
        return _with_cookie({} if name is None else {"resources_session_id": name}, session)

    async def call(self, request: Request, body: Body) -> Response:
        """Run a tool; the text of the answer is for the model, errors included."""
        name = str(request.path_params["tool"])
        if not _TOOL_NAME.fullmatch(name):
            return PlainTextResponse("Error: no such tool", 404)
        async with self._turn(request) as session:
            state = session.state if session else None
            try:
                text = await self._run(self.environment.call(state, name, body))
            except ToolError as error:
                return PlainTextResponse(error.message, 400)
        return PlainTextResponse(text)

    async def verify(self, request: Request, body: Body) -> Body:
        """Judge an episode: the task row with the `response`; answers with the reward and the verifier's fields."""
        response = _object(body, "response")
        items = _items(response)
        given = task_row({key: value for key, value in body.items() if key != "response"})
        async with self._turn(request) as session:
            task = self._task(session, given)
            state = session.state if session else None
            verdict = await self._run(self.environment.verify(state, task, items))
            check_verdict(verdict)
            if session:
                session.is_verified = True
        params = {"responses_create_params": given["responses_create_params"], "response": response}
        return {**verdict_fields(verdict), **params}

    async def reset(self, _request: Request, body: Body) -> Response:
        """Begin an episode that is played by steps. The prompt holds the first observation already."""
        row = task_row(body)
        session = await self._run(self.sessions.open(Task(task_index(row), row)))
        info = {**_PROMISES, "max_turns": self.environment.playing(session.task).max_turns}
        return _with_cookie({"observation": None, "info": info}, session)

    async def step(self, request: Request, body: Body) -> Response:
        """Take a turn of the model, in `response`: run its calls or its action; judge where the episode ends.

        A step that is sent again under its id has the same answer, or the same error. Agents that give their steps ids
        close what they began; of the others the episode is closed with its last step.
        """
        items = _items(_object(body, "response"))
        step_id = _step_id(body)
        async with self._turn(request) as session:
            if session is not None and step_id is not None and session.step_id == step_id:
                return _with_cookie(_replied(session), session)
            if session is None or session.is_over:
                raise RequestError("no episode was begun", code="no_session", fix="POST the task to /reset first")
            session.step_id = step_id
            try:
                session.reply = reply = await self._stepped(session, items)
            except Exception as error:
                session.reply = error
                raise
            session.is_over = session.is_verified = reply["terminated"] or reply["truncated"]
        if session.is_over and step_id is None:
            await self.sessions.close(session)
        return _with_cookie(reply, session)

    async def _stepped(self, session: Session, items: list[Body]) -> Body:
        session.output.extend(items)
        session.num_steps += 1
        calls = [item for item in items if item.get("type") == "function_call"]
        tools = chat_tools(_object(session.task.row, "responses_create_params"))
        outputs = [await self._tool_output(session, call, tools) for call in calls]
        said = None if calls else await self._run(self.environment.observe(session.state, session.output))
        session.output.extend(tool_output_item(output["call_id"], output["output"]) for output in outputs)
        if said is not None:
            session.output.append(observation_item(said))
        is_over = not calls and said is None
        is_cut = not is_over and session.num_steps >= self.environment.playing(session.task).max_turns
        reply: Body = {"observation": said, "reward": 0.0, "terminated": is_over, "truncated": is_cut}
        if not is_over and not is_cut:
            return {**reply, "info": {"tool_outputs": outputs, JUDGED: False}}
        verdict = await self._run(self.environment.verify(session.state, session.task, session.output))
        check_verdict(verdict)
        info = {**verdict.metrics, "reward_components": verdict.components, "tool_outputs": outputs}
        return {**reply, "reward": float(verdict.reward), "info": info}

    async def _tool_output(self, session: Session, call: Body, tools: list[Body]) -> Body:
        """What a call says, the reason of its refusal included."""
        name, call_id = str(call.get("name")), str(call.get("call_id") or "")
        try:
            arguments = checked_arguments(name, str(call.get("arguments")), tools)
            text = await self._run(self.environment.call(session.state, name, arguments))
        except ToolError as error:
            text = error.message
        return {"call_id": call_id, "output": text}

    def _task(self, session: Session | None, given: Body) -> Task:
        """The seeded task, whatever the caller says now; what it was seeded without is taken from the caller."""
        if session is None:
            return Task(task_index(given), given)
        row = {**session.task.row}
        row.setdefault("responses_create_params", given["responses_create_params"])
        return Task(session.task.index, row)

    async def close_session(self, request: Request, body: Body) -> Body:
        """End an episode, by its cookie or by the name it was seeded under."""
        name = body.get("resources_session_id")
        if isinstance(name, str) and 0 < len(name) <= _NAME_LENGTH:
            await self.sessions.close_name(name)
            return {"resources_session_id": name}
        session = self.sessions.find(request.cookies.get(COOKIE))
        if session is not None:
            await self.sessions.close(session)
        return {}

    async def aggregate_metrics(self, _request: Request, body: Body) -> Body:
        """The figures of finished episodes."""
        rows = body.get("verify_responses")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in cast("list[Any]", rows)):
            raise RequestError("is no list of verify responses", where="verify_responses", status=422)
        return metrics_of(cast("list[Body]", rows), self.environment.name)

    @asynccontextmanager
    async def _turn(self, request: Request) -> AsyncGenerator[Session | None]:
        """The session of a request while no other request of it is at work."""
        session = self.sessions.find(request.cookies.get(COOKIE))
        if session is None:
            if not self.is_stateless:
                raise RequestError(
                    "no session",
                    code="no_session",
                    fix="POST the task to /seed_session first and send its cookie; sessions end when closed or old",
                )
            yield None
            return
        async with asyncio.timeout(self.limits.call_seconds):
            await session.turn.acquire()
        try:
            yield session
        finally:
            session.turn.release()

    async def _run(self, call: Awaitable[Result]) -> Result:
        """Await a call of the environment; data that it cannot use is the caller's."""
        try:
            async with asyncio.timeout(self.limits.call_seconds):
                return await call
        except TimeoutError:
            raise RequestError(
                f"a call of the environment took longer than {self.limits.call_seconds:g} seconds",
                status=504,
                code="timed_out",
            ) from None
        except RegimenError:
            raise
        except DATA_ERRORS as error:
            raise RequestError(
                f"the environment cannot use this: {type(error).__name__}: {shortened(str(error))}",
                status=422,
                code="unusable",
            ) from error


def check_verdict(verdict: Verdict) -> None:
    """Raise `GymError` for a reward that is no number."""
    if not math.isfinite(verdict.reward):
        raise GymError(f"the verifier's reward is {verdict.reward}")


def task_row(body: Body) -> Body:
    """The body as a task row. Raises `RequestError` when its prompt or tools cannot be read."""
    params = _object(body, "responses_create_params")
    input_messages(params)
    chat_tools(params)
    return body


def task_index(row: Body) -> int:
    """The index that the collector gave the task, or 0."""
    index = row.get("_ng_task_index")
    return index if type(index) is int else 0


def metrics_of(rows: Sequence[Body], name: str) -> Body:
    """NeMo Gym's aggregate metrics of verify responses that came without their episodes."""
    whole: list[Body] = []
    for position, row in enumerate(rows):
        reward = row.get("reward")
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise RequestError("has no reward", where=f"verify_responses[{position}]", status=422)
        response = row.get("response")
        kept = cast("Body", response) if isinstance(response, dict) else {}
        usage = kept.get("usage")
        numbers = {
            key: value
            for key, value in (cast("Body", usage) if isinstance(usage, dict) else {}).items()
            if isinstance(value, int | float)
        }
        params = {"responses_create_params": {"input": ""}}
        whole.append({**row, **params, "_ng_task_index": task_index(row), "response": {"output": [], "usage": numbers}})
    entry = aggregate_metrics(whole, name)[0]
    return {key: entry[key] for key in ("agent_metrics", "key_metrics", "group_level_metrics")}


def _with_cookie(body: Body, session: Session) -> Response:
    """An answer that hands the caller its session; agents take the cookies of each answer for the next request."""
    response = answer(body)
    response.set_cookie(COOKIE, session.key, path="/", httponly=True, samesite="strict")
    return response


def _replied(session: Session) -> Body:
    """What the last step was answered; raises what it failed with."""
    if isinstance(session.reply, Exception):
        raise session.reply
    return session.reply


def _step_id(body: Body) -> str | None:
    """What the agent calls this step, where it does."""
    name = body.get("_ng_step_request_id")
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH):
        raise RequestError("_ng_step_request_id is no name", expected=f"1 to {_NAME_LENGTH} characters")
    return name


def _items(response: Body) -> list[Body]:
    """The output items of a response."""
    output = response.get("output")
    if not isinstance(output, list) or not all(isinstance(item, dict) for item in cast("list[Any]", output)):
        raise RequestError("is no list of items", where="response.output", status=422, code="wrong_response")
    return cast("list[Body]", output)


def _object(body: Body, key: str) -> Body:
    value = body.get(key)
    if not isinstance(value, dict):
        raise RequestError("is missing or no object", where=key, status=422, code="missing")
    return cast("Body", value)

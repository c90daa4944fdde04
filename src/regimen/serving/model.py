"""A model over HTTP: OpenAI's `/v1/chat/completions` and `/v1/responses`, `/tokenize`, `/v1/models`, `/metrics`.

In: an `Engine`, over any generation backend. Out: a Starlette application. Every answer says which weights made it
(`weight_version`, `system_fingerprint`, the header `regimen-weight-version`). A stream sends words as they are sampled,
and stops sampling when its client goes away. `/weights` swaps weights where the engine was given a way to read them.
Refuses: other models than the one served, and what `regimen.serving.wire` refuses.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from regimen.errors import RequestError
from regimen.generation.base import Reply, Sampling
from regimen.serving import chat, responses
from regimen.serving.answers import HEALTH_PATHS, Body, Handler, answer, answering, convert, failed, health, not_found
from regimen.serving.engine import Engine, SampledToken
from regimen.serving.metrics import CONTENT_TYPE, Metrics
from regimen.serving.openapi import model_document
from regimen.serving.streaming import EventStream, event
from regimen.serving.wire import (
    ChatRequest,
    ResponsesRequest,
    TokenizeRequest,
    check_supported,
    sampling_of,
    seed_of,
)

VERSION_HEADER = "regimen-weight-version"
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Stream(Protocol):
    """The events of one answer while it is made."""

    def take(self, index: int, item: SampledToken | Reply) -> list[Body]:
        """The events of an item of `Engine.stream`."""
        ...

    def end(self) -> list[Body]:
        """What follows the last answer."""
        ...

    def error(self, problem: Body) -> Body:
        """The event of a failure in the midst."""
        ...


Item = tuple[int, SampledToken | Reply]
Items = AsyncGenerator[Item]


class WeightsRequest(msgspec.Struct, kw_only=True):
    """The body of `/weights`: a folder's name, and the version that later answers carry."""

    folder: str
    version: int


def model_app(engine: Engine) -> Starlette:
    """The application."""
    service = ModelService(engine)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        yield
        await engine.generation.close()

    return Starlette(routes=model_routes(service), lifespan=lifespan, exception_handlers={HTTPException: not_found})


def model_routes(service: ModelService) -> list[Route]:
    """The paths of a model server."""
    document = model_document(service.engine.served.name, service.engine.load_weights is not None)

    async def openapi(_request: Request, _body: Body) -> Body:
        return document

    def post(path: str, handler: Handler) -> Route:
        return Route(path, answering(service.counted(path, handler)), methods=["POST"])

    routes = [
        *(Route(path, answering(health), methods=["GET"]) for path in HEALTH_PATHS),
        Route("/openapi.json", answering(openapi), methods=["GET"]),
        Route("/metrics", answering(service.metrics_text), methods=["GET"]),
        Route("/v1/models", answering(service.models), methods=["GET"]),
        Route("/v1/models/{name:path}", answering(service.one_model), methods=["GET"]),
        post("/v1/chat/completions", service.chat_completions),
        post("/v1/responses", service.responses),
        post("/tokenize", service.tokenize),
    ]
    return [*routes, post("/weights", service.weights)] if service.engine.load_weights else routes


class ModelService:
    """The handlers of a model server."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.metrics = Metrics()
        self.started = int(time.time())

    def counted(self, route: str, handler: Handler) -> Handler:
        """The handler, its requests counted in the metrics."""

        async def counting(request: Request, body: Body) -> Response:
            begun = time.monotonic()
            self.metrics.num_running += 1
            try:
                result = await handler(request, body)
                response = result if isinstance(result, Response) else answer(result)
            except Exception as error:  # counted with the status that it is answered with
                response = failed(error)
            finally:
                self.metrics.num_running -= 1
            self.metrics.finish(route, response.status_code, time.monotonic() - begun)
            return response

        return counting

    async def chat_completions(self, _request: Request, body: Body) -> Response:
        """Answer chat messages."""
        asked = convert(body, ChatRequest)
        prompt, sampling = self._prompt(asked, asked.messages, None)
        identity, name, renderer = uuid.uuid4().hex, self.engine.served.name, self.engine.renderer
        number, with_ids = asked.n or 1, self._with_ids(asked)
        if not asked.stream:
            replies = await self._replies(prompt, sampling, seed_of(asked), number)
            whole = chat.completion(identity, asked, name, replies, renderer.decode, with_ids)
            return answer(whole, headers=_version(min(reply.weight_version for reply in replies)))

        def begin(version: int) -> chat.ChatStream:
            return chat.ChatStream(identity, asked, name, version, prompt, renderer.decode, renderer.stop_ids, with_ids)

        items = self._items(prompt, sampling, seed_of(asked), number)
        return await self._streamed(items, begin, "data: [DONE]\n\n")

    async def responses(self, _request: Request, body: Body) -> Response:
        """Answer Responses items."""
        asked = convert(body, ResponsesRequest)
        prompt, sampling = self._prompt(asked, asked.input, asked.instructions)
        identity, name, renderer = uuid.uuid4().hex, self.engine.served.name, self.engine.renderer

        def whole(reply: Reply) -> Body:
            return responses.response_of(identity, asked, name, reply, sampling, renderer.decode, self._with_ids(asked))

        if not asked.stream:
            (reply,) = await self._replies(prompt, sampling, seed_of(asked), 1)
            return answer(whole(reply), headers=_version(reply.weight_version))

        def begin(version: int) -> responses.ResponseStream:
            begun = responses.begun(identity, asked, name, sampling, version)
            return responses.ResponseStream(identity, begun, renderer.decode, renderer.stop_ids, whole)

        return await self._streamed(self._items(prompt, sampling, seed_of(asked), 1), begin, "")

    async def _streamed(self, items: Items, begin: Callable[[int], Stream], last: str) -> Response:
        """The response of a stream. What fails before its first item is raised, so that it has a status."""
        first = await anext(items)
        version = first[1].weight_version
        return EventStream(_lines(first, items, begin(version), last), _version(version))

    def _prompt(
        self, asked: ChatRequest | ResponsesRequest, items: str | list[Body], instructions: str | None
    ) -> tuple[list[int], Sampling]:
        """The ids to answer, and how."""
        self._check_model(asked.model)
        check_supported(asked)
        tools = None if asked.tool_choice == "none" else asked.tools
        prompt = self.engine.prompt_ids(items, tools, instructions)
        return prompt, sampling_of(asked, self.engine.served.sampling, self.engine.room(prompt))

    async def _replies(self, prompt: list[int], sampling: Sampling, seed: int, number: int) -> list[Reply]:
        replies = await self.engine.replies(prompt, sampling, seed, number)
        self._count(len(prompt), replies)
        return replies

    async def _items(self, prompt: list[int], sampling: Sampling, seed: int, number: int) -> Items:
        """The engine's stream, counted."""
        replies: list[Reply] = []
        async with aclosing(self.engine.stream(prompt, sampling, seed, number)) as stream:
            async for index, item in stream:
                if isinstance(item, Reply):
                    replies.append(item)
                yield index, item
        self._count(len(prompt), replies)

    def _count(self, num_prompt_tokens: int, replies: list[Reply]) -> None:
        self.metrics.prompt_tokens += num_prompt_tokens
        self.metrics.generated_tokens += sum(reply.num_output_tokens for reply in replies)

    def _with_ids(self, asked: ChatRequest | ResponsesRequest) -> bool:
        given = asked.return_token_ids
        return self.engine.served.with_token_ids if given is None else given

    def _check_model(self, name: str | None) -> None:
        served = self.engine.served.name
        if name is not None and name != served:
            raise RequestError(
                f"there is no model {name[:200]!r}",
                status=404,
                code="model_not_found",
                where="model",
                expected=repr(served),
            )

    async def tokenize(self, _request: Request, body: Body) -> Body:
        """The ids of a text, or of messages as the model would be asked."""
        asked = convert(body, TokenizeRequest)
        self._check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise RequestError("give one of prompt and messages")
        ids = (
            self.engine.renderer.encode(asked.prompt)
            if asked.prompt is not None
            else self.engine.prompt_ids(asked.messages or [], asked.tools)
        )
        return {"count": len(ids), "max_model_len": self.engine.served.max_length, "tokens": ids}

    async def models(self, _request: Request, _body: Body) -> Body:
        """The one model that is served."""
        return {"object": "list", "data": [self._model()]}

    async def one_model(self, request: Request, _body: Body) -> Body:
        """The model by its name."""
        self._check_model(str(request.path_params["name"]))
        return self._model()

    def _model(self) -> Body:
        served = self.engine.served
        return {
            "id": served.name,
            "object": "model",
            "created": self.started,
            "owned_by": "regimen",
            "max_model_len": served.max_length,
            "weight_version": self.engine.weight_version,
        }

    async def metrics_text(self, _request: Request, _body: Body) -> Response:
        """The counters."""
        text = self.metrics.text(self.engine.weight_version)
        return PlainTextResponse(text, headers={"content-type": CONTENT_TYPE})

    async def weights(self, _request: Request, body: Body) -> Body:
        """Take the weights of a folder; answers under way are finished with the old ones."""
        asked = convert(body, WeightsRequest)
        if not _FOLDER.fullmatch(asked.folder) or self.engine.load_weights is None:
            raise RequestError("is no name of a folder", where="folder", expected="letters, digits, - _ and .")
        await self.engine.update(asked.version, self.engine.load_weights(asked.folder))
        self.metrics.num_updates += 1
        return {"weight_version": asked.version}


def _version(version: int) -> dict[str, str]:
    return {VERSION_HEADER: str(version)}


async def _lines(first: Item, items: Items, stream: Stream, last: str) -> AsyncGenerator[str]:
    """The events as text."""
    async with aclosing(items):
        try:
            for one in stream.take(*first):
                yield event(one, one.get("type"))
            async for item in items:
                for one in stream.take(*item):
                    yield event(one, one.get("type"))
        except Exception as error:  # the status is sent already: the failure is the last event
            one = stream.error(json.loads(bytes(failed(error).body))["error"])
            yield event(one, one.get("type"))
        for one in stream.end():
            yield event(one)
    if last:
        yield last

"""Serving: an environment, an agent that plays it, or a model, joined with what they need and put behind the guard.

In: a `ServeConfig`. Out: an ASGI application, or a running server. Refuses: nothing to serve, options that belong to
another kind of server, addresses that others reach without a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
from starlette.applications import Starlette

from regimen.config.schema_policy import SamplingConfig
from regimen.errors import PolicyError, RequestError, UsageError
from regimen.generation.base import Generation, Sampling
from regimen.gym.agent import Limits, play, play_with
from regimen.gym.environment import Environment, Task, load_environment
from regimen.pipelines.collect import load_generation, load_remote, sampling_of
from regimen.pipelines.models import check_length, config_of, resolve_model
from regimen.serving.agent import AgentService, Play
from regimen.serving.engine import Engine, Served, TextRenderer, Weights
from regimen.serving.environment import environment_app
from regimen.serving.guard import ServerLimits
from regimen.serving.listen import address_of, bind, server_of, token_for
from regimen.serving.model import model_app
from regimen.tokens.template import Renderer

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve, and where. With an environment the model is the agent's; alone it is served itself."""

    model: str | None = None
    model_url: str | None = None
    environment: str | None = None
    environment_options: dict[str, Any] = {}
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    max_sequence_length: int | None = None
    max_turns: int | None = None
    seed: int = 0
    with_token_ids: bool = False
    weights_folder: Path | None = None
    generation: SamplingConfig = SamplingConfig()
    limits: ServerLimits = ServerLimits()


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What a server that listens says: what it serves, where, and the token to show once."""

    what: str
    url: str
    new_token: str | None
    has_token: bool


def serve(config: ServeConfig, on_ready: Callable[[Ready], None]) -> None:
    """Serve until interrupted."""
    check(config)
    token = token_for(config.host, config.token_file)
    listening = bind(config.host, config.port)  # before anything is loaded
    with listening:
        app = application(config)
        what = f"environment {config.environment}" if config.environment else f"model {_name(config)}"
        new = token.value if token and token.is_new else None
        on_ready(Ready(what=what, url=address_of(listening), new_token=new, has_token=token is not None))
        server_of(app, config.limits, token.value if token else None).run(sockets=[listening])


def check(config: ServeConfig) -> None:
    """Refuse contradictions, before anything is loaded."""
    if config.environment is None and config.model is None:
        raise UsageError("nothing to serve", expected="a MODEL, or --environment NAME, or both")
    if config.environment is None and config.model_url is not None:
        raise UsageError("a model at an endpoint is served there already", where="--model-url", fix="leave it out")
    if config.model_url is not None and config.model is None:
        raise UsageError("the endpoint's model has no name", where="--model-url", fix="give the name as MODEL")
    if config.environment is not None and config.weights_folder:
        raise UsageError("--weights-folder belongs to a model server", fix="leave --environment out")
    if config.environment is not None and config.with_token_ids and config.model_url is None:
        raise UsageError(
            "--token-ids with --environment is for a model elsewhere", fix="give --model-url, or leave it out"
        )
    if config.weights_folder is not None and not config.weights_folder.is_dir():
        raise UsageError("there is no such folder", where=str(config.weights_folder))


def application(config: ServeConfig) -> Starlette:
    """The ASGI application of a configuration, without the guard."""
    if config.environment is None:
        return model_app(load_engine(config))
    environment = load_environment(config.environment, config.environment_options)
    if config.model is None:
        return environment_app(environment, config.limits)
    play_task, sampling = _player(config)
    agent = AgentService(environment, play_task, sampling)
    return environment_app(environment, config.limits, agent.routes())


def load_engine(config: ServeConfig) -> Engine:
    """The model of a configuration, ready to answer."""
    renderer, generation, length = _load(config)
    served = Served(
        name=_name(config),
        max_length=length,
        vocabulary_size=vocabulary_size(config.model or "", renderer, trust=config.trust_remote_code),
        sampling=sampling_of(config.generation, renderer),
        with_token_ids=config.with_token_ids,
    )
    folder = config.weights_folder
    reader = None if folder is None else weights_reader(folder)
    return Engine(generation, cast("TextRenderer", renderer), served, reader)


def _load(config: ServeConfig) -> tuple[Renderer, Generation, int]:
    model, trust = config.model or "", config.trust_remote_code
    folder = resolve_model(model)
    length = config.max_sequence_length or _positions(folder, trust)
    check_length(model, length, "max_sequence_length", trust=trust)
    renderer = Renderer.load(folder, config.chat_template, trust_remote_code=trust)
    return renderer, load_generation(model, config.generation, trust_remote_code=trust), length


def _positions(folder: str, trust: bool) -> int:
    config = config_of(folder, trust)
    return int((config.get("text_config") or config).get("max_position_embeddings") or 4096)


def vocabulary_size(model: str, renderer: Renderer, *, trust: bool = False) -> int:
    """The number of ids that a model knows."""
    found = config_of(resolve_model(model), trust)
    size = (found.get("text_config") or found).get("vocab_size")
    return int(size) if size else len(renderer.tokenizer)


def _name(config: ServeConfig) -> str:
    return config.name or config.model or ""


def _player(config: ServeConfig) -> tuple[Play, Sampling]:
    """How the agent plays a task, and the sampling it does so with."""
    seconds = config.limits.episode_seconds
    limits = Limits(max_turns=config.max_turns, call_seconds=config.limits.call_seconds, episode_seconds=seconds)
    name = _name(config)
    if config.model_url is not None:
        remote = load_remote(config.model_url, config.model or "", with_token_ids=config.with_token_ids)
        given = config.generation
        elsewhere = Sampling(
            temperature=given.temperature, top_p=given.top_p, top_k=given.top_k, max_new_tokens=given.max_new_tokens
        )

        async def ask(environment: Environment, task: Task, repeat: int, sampling: Sampling) -> dict[str, Any]:
            return await play_with(task, repeat, environment, remote, sampling, config.seed, limits, model_name=name)

        return ask, elsewhere
    renderer, generation, length = _load(config)
    limits = msgspec.structs.replace(limits, max_sequence_length=length)

    async def sample(environment: Environment, task: Task, repeat: int, sampling: Sampling) -> dict[str, Any]:
        return await play(
            task, repeat, environment, generation, renderer, sampling, config.seed, limits, model_name=name
        )

    return sample, sampling_of(config.generation, renderer)


def weights_reader(root: Path) -> Callable[[str], Weights]:
    """Reads the safetensors of a folder inside `root`; raises `RequestError` for any other."""

    def read(name: str) -> Weights:
        folder = (root / name).resolve()
        files = sorted(folder.glob("*.safetensors"))
        if not _SAFE_NAME.fullmatch(name) or folder.parent != root.resolve() or not files:
            raise RequestError(
                "there are no weights of that name", status=404, where="folder", expected="a folder with safetensors"
            )
        return _tensors(files)

    return read


def _tensors(files: list[Path]) -> Weights:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in files:
        try:
            yield from load_file(file).items()
        except (SafetensorError, OSError) as error:
            raise PolicyError(f"the weights cannot be read ({error})", where=str(file)) from error

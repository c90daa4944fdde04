"""Collecting: tasks of an environment and who plays them joined; rollouts come out.

In: a `CollectConfig`. Out: a `Collection`, written to `config.output` and the files beside it. The policy is a model in
this process, a model at an endpoint, or an agent of a running NeMo Gym.
Refuses: existing output before anything is loaded, more tasks than the split has, and what the parts refuse.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from regimen.config.schema_loops import CollectConfig, PlayConfig
from regimen.config.schema_policy import SamplingConfig
from regimen.endpoint import Endpoint
from regimen.errors import ConfigError
from regimen.generation.base import Generation, Sampling
from regimen.generation.remote import KEY_VARIABLE, RemoteChat
from regimen.gym.agent import Limits, Renderer, play_with
from regimen.gym.collect import (
    Collection,
    Player,
    check_output,
    collect_episodes,
    collect_rollouts,
    identity_of,
    settings_of,
)
from regimen.gym.environment import Environment, Split, Task, load_environment
from regimen.gym.nemo_gym import find_agent
from regimen.pipelines.models import check_length, resolve_model
from regimen.pipelines.tasks import read_tasks
from regimen.registry import resolve

OnRow = Callable[[dict[str, Any]], None]
OnStart = Callable[[int], None]
GYM_KEY_VARIABLE = "REGIMEN_GYM_KEY"
IN_PROCESS = frozenset({"transformers", "fake"})  # backends that share this process and its load


def collect(
    config: CollectConfig,
    *,
    on_start: OnStart | None = None,
    on_row: OnRow | None = None,
    generation: Generation | None = None,
    renderer: Renderer | None = None,
) -> Collection:
    """Play `config.num_tasks` tasks `config.num_repeats` times each.

    `on_start` hears the number of episodes in all, `on_row` of each one as it ends. `generation` and `renderer`
    replace those of the configured backend; a given generation is left open.
    """
    check_output(Path(config.output), resume=config.resume, overwrite=config.overwrite)
    if config.gym is not None:
        return _collect_from_gym(config, on_start, on_row)
    environment = load_environment(config.environment.name, config.environment.settings)
    tasks = tasks_of(environment, config.split, config.num_tasks)
    if config.model_url is not None:
        return _collect_from_endpoint(config, environment, tasks, on_start, on_row)
    if generation is None:
        check_length(config.model, config.max_sequence_length, "max_sequence_length", trust=config.trust_remote_code)
    renderer = renderer or load_renderer(config)
    if on_start:
        on_start(len(tasks) * config.num_repeats)
    return asyncio.run(_collect(config, environment, tasks, generation, renderer, on_row))


def _collect_from_endpoint(
    config: CollectConfig, environment: Environment, tasks: list[Task], on_start: OnStart | None, on_row: OnRow | None
) -> Collection:
    """Play with a model at an OpenAI-compatible endpoint."""
    sampling = _sampling_elsewhere(config)
    limits = Limits(max_turns=config.max_turns)

    async def work() -> Collection:
        model = load_remote(config.model_url or "", config.model, with_token_ids=config.token_ids)

        async def one(task: Task, repeat: int) -> dict[str, Any]:
            return await play_with(
                task, repeat, environment, model, sampling, config.seed, limits, model_name=config.model
            )

        player = Player(
            name=environment.name,
            identity=identity_of(config.seed, None, None, sampling, config.model),
            settings={"model_url": config.model_url, **settings_of(sampling, limits, environment)},
            play=one,
        )
        try:
            return await _collected(config, tasks, player, on_row)
        finally:
            await model.close()

    if on_start:
        on_start(len(tasks) * config.num_repeats)
    return asyncio.run(work())


def _collect_from_gym(config: CollectConfig, on_start: OnStart | None, on_row: OnRow | None) -> Collection:
    """Let an agent of a running NeMo Gym play the rows of a file."""
    tasks = read_tasks(Path(config.tasks or ""), config.num_tasks)
    sampling = _sampling_elsewhere(config)

    async def work() -> Collection:
        agent = await find_agent(config.gym or "", config.agent or "", key=os.environ.get(GYM_KEY_VARIABLE))

        async def one(task: Task, repeat: int) -> dict[str, Any]:
            return await agent.play(task, repeat, sampling)

        player = Player(
            name=agent.name,
            identity={"temperature": sampling.temperature, "top_p": sampling.top_p},
            settings={"agent": config.agent, "max_output_tokens": sampling.max_new_tokens},
            play=one,
        )
        try:
            return await _collected(config, tasks, player, on_row)
        finally:
            await agent.close()

    if on_start:
        on_start(len(tasks) * config.num_repeats)
    return asyncio.run(work())


async def _collected(config: CollectConfig, tasks: list[Task], player: Player, on_row: OnRow | None) -> Collection:
    return await collect_episodes(
        tasks,
        config.num_repeats,
        player,
        concurrency=config.concurrency,
        output=Path(config.output),
        resume=config.resume,
        overwrite=config.overwrite,
        on_row=on_row,
    )


def load_remote(url: str, model: str, *, with_token_ids: bool = False) -> RemoteChat:
    """The model at an endpoint; its key stands in an environment variable and nowhere else."""
    endpoint = Endpoint(url, key=os.environ.get(KEY_VARIABLE))
    return RemoteChat(endpoint, model, with_token_ids=with_token_ids)


def _sampling_elsewhere(config: CollectConfig) -> Sampling:
    """The sampling settings for a model that stops by its own stop tokens."""
    given = config.generation
    if given.stop_token_ids:
        raise ConfigError("is set, but the model is elsewhere", where="generation.stop_token_ids", fix="leave it out")
    return Sampling(
        temperature=float(given.temperature),
        top_p=float(given.top_p),
        top_k=given.top_k,
        max_new_tokens=given.max_new_tokens,
    )


def tasks_of(environment: Environment, split: Split, num_tasks: int | None) -> list[Task]:
    """The tasks to play; raises `ConfigError` when the split has fewer than asked for."""
    tasks = environment.tasks(split, num_tasks)
    if len(tasks) < (num_tasks or 1):
        raise ConfigError(
            f"the split {split!r} of environment {environment.name!r} has {len(tasks)} tasks",
            expected=f"at least {num_tasks or 1}",
            fix="lower num_tasks",
        )
    return tasks


def load_renderer(config: CollectConfig) -> Renderer:
    """The tokenizer and the chat template of the configured model."""
    from regimen.tokens.template import Renderer as ChatRenderer  # loads a tokenizer library, so only when used

    return ChatRenderer.load(
        resolve_model(config.model),
        config.chat_template,
        config.chat_template_kwargs,
        trust_remote_code=config.trust_remote_code,
    )


def load_generation(model: str, config: SamplingConfig, *, trust_remote_code: bool = False) -> Generation:
    """The configured backend with the weights of `model`."""
    backend = resolve("generation", config.backend)
    return backend.load(
        resolve_model(model),
        precision=config.precision or default_precision(),
        max_batch_size=config.max_batch_size,
        trust_remote_code=trust_remote_code,
    )


def default_precision() -> str:
    """bfloat16 where a GPU is, float32 elsewhere."""
    import torch  # only where a model is loaded anyway

    return "bfloat16" if torch.cuda.is_available() else "float32"


def sampling_of(config: SamplingConfig, renderer: Renderer) -> Sampling:
    """The sampling settings, with the stop tokens of the template and those configured."""
    return Sampling(
        temperature=float(config.temperature),
        top_p=float(config.top_p),
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens,
        stop_ids=tuple(dict.fromkeys([*renderer.stop_ids, *(config.stop_token_ids or [])])),
    )


def limits_of(config: PlayConfig) -> Limits:
    """What ends an episode early. Not the clock where episodes wait for each other's turns in this process."""
    limits = Limits(max_turns=config.max_turns, max_sequence_length=config.max_sequence_length)
    in_process = config.generation.backend in IN_PROCESS
    return msgspec.structs.replace(limits, episode_seconds=None) if in_process else limits


async def _collect(
    config: CollectConfig,
    environment: Environment,
    tasks: list[Task],
    generation: Generation | None,
    renderer: Renderer,
    on_row: OnRow | None,
) -> Collection:
    engine = generation or load_generation(config.model, config.generation, trust_remote_code=config.trust_remote_code)
    try:
        return await collect_rollouts(
            tasks,
            config.num_repeats,
            environment,
            engine,
            renderer,
            sampling_of(config.generation, renderer),
            seed=config.seed,
            concurrency=config.concurrency,
            limits=limits_of(config),
            output=Path(config.output),
            resume=config.resume,
            overwrite=config.overwrite,
            on_row=on_row,
            model_name=config.model,
        )
    finally:
        if generation is None:
            await engine.close()

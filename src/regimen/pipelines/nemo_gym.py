"""A running NeMo Gym in the training loop: its agents play the episodes, this process serves the model that is trained.

In: the configuration, a generation, a renderer. Out: what `EpisodeBatches` plays with. The server stands on a thread of
its own with a token; between plays its requests wait, and every answer says which weights made it. Of many processes
the first one serves and plays, and all get its episodes.
Refuses: a gym that does not answer, agents it does not have, a server without a token; as failed episodes: those
without token ids, or with ids that this process did not sample.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from regimen.config.nemo_gym import NAME, PATH, NemoGymConfig, missing_token, nemo_gym_of, start_command
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError, EndpointError, GymError, RequestError, RolloutError
from regimen.generation.base import Generation, OnToken, Reply, Sampling
from regimen.gym.collect import MAX_FAILURE_RATE, Collection, collect_episodes
from regimen.gym.collect import Player as Collector
from regimen.gym.environment import Task
from regimen.gym.nemo_gym import GymAgent, find_agent
from regimen.gym.protocol import failure_fields, is_failure
from regimen.pipelines.collect import GYM_KEY_VARIABLE
from regimen.pipelines.processes import pooled
from regimen.pipelines.serve import vocabulary_size
from regimen.pipelines.tasks import tasks_of_gym
from regimen.policy.ranks import Ranks
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.turns import turns_of
from regimen.serving.engine import Engine, Served, TextRenderer
from regimen.serving.guard import ServerLimits
from regimen.serving.listen import address_of, bind, server_of, token_for
from regimen.serving.model import model_app
from regimen.tokens.template import Renderer

Row = dict[str, Any]
Result = TypeVar("Result")
_START_SECONDS = 30.0
_PLAYING = "playing"
_PROGRESS_SECONDS = 10.0  # a process that waits for the episodes of another hears this often that they are played


class TrainingEngine(Engine):
    """The engine of a training run: samples as the run says, seeded by its step, and remembers what it sampled.

    The n-th answer to a prompt has the seed of (run, step, prompt, n), so that equal requests give equal samples.
    """

    def begin(self, sampling: Sampling, seed: int, step: int) -> None:
        """The episodes of `step` begin."""
        self._sampling_asked = sampling
        self._key = f"{seed}/{step}"
        self._asked: Counter[bytes] = Counter()
        self._made: dict[bytes, int] = {}

    async def reply(
        self, prompt_ids: list[int], sampling: Sampling, seed: int, on_token: OnToken | None = None
    ) -> Reply:
        """One answer, whatever seed was asked for. Raises `RequestError` for another distribution than trains."""
        self._check(sampling)
        prompt = _digest(prompt_ids)
        number = self._asked[prompt]
        self._asked[prompt] += 1
        key = f"{self._key}/{prompt.hex()}/{number}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 2
        reply = await super().reply(prompt_ids, sampling, seed, on_token)
        if reply.tokens is not None:
            self._made[_digest(prompt_ids, reply.tokens.ids)] = reply.weight_version
        return reply

    def version_of(self, prompt_ids: list[int], ids: list[int]) -> int | None:
        """The weights that sampled `ids` behind this prompt in this step; None where they did not come from here."""
        return self._made.get(_digest(prompt_ids, ids))

    def _check(self, sampling: Sampling) -> None:
        for name in ("temperature", "top_p", "top_k"):
            asked, wanted = getattr(sampling, name), getattr(self._sampling_asked, name)
            if asked != wanted:
                raise RequestError(
                    f"is {asked}, but this run samples with {wanted}", where=name, fix=f"leave {name} to the task's row"
                )


def _digest(*parts: list[int]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + array("q", part).tobytes())
    return digest.digest()


class GymServer:
    """The model server on its thread, and the agents that ask it, by their names."""

    def __init__(self, engine: TrainingEngine, host: str, port: int, token: str) -> None:
        self.engine = engine
        self.agents: dict[str, GymAgent] = {}
        self._loop = asyncio.new_event_loop()
        listening = bind(host, port)
        self.url = address_of(listening)
        limits = ServerLimits(requests=1 << 16, connections=1 << 16, episode_seconds=3600.0)
        self._server = server_of(model_app(engine), limits, token)
        self._serving = self._loop.create_task(self._server.serve(sockets=[listening]))
        self._thread = threading.Thread(target=self._loop.run_forever, name="regimen-nemo-gym", daemon=True)
        self._thread.start()
        self.run(self._started())

    def run(self, work: Coroutine[Any, Any, Result], meanwhile: Callable[[], object] | None = None) -> Result:
        """Let the thread do `work`; an interrupt cancels it. `meanwhile` is called now and then until it is done."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while meanwhile is not None and not wait([future], _PROGRESS_SECONDS).done:
                meanwhile()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _started(self) -> None:
        async with asyncio.timeout(_START_SECONDS):
            while not self._server.started:
                await asyncio.sleep(0.01)
        await self.engine.pause()

    async def find(self, head_url: str, names: list[str], seconds: float) -> None:
        """Look the agents up at the head server."""
        key = os.environ.get(GYM_KEY_VARIABLE)
        for name in names:
            self.agents[name] = await find_agent(head_url, name, key=key, seconds=seconds)

    def close(self) -> None:
        """End the server, and with it the generation, and the connections to the agents."""
        if self._loop.is_closed():
            return
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for agent in self.agents.values():
            await agent.close()
        self.engine.resume()  # a request that waits would keep the server
        self._server.should_exit = True
        await self._serving


class WithoutGym:
    """The player of a process that is not the first: it gets the first one's episodes."""

    def __init__(self, sampling: Sampling, concurrency: int, ranks: Ranks) -> None:
        self.sampling, self.concurrency, self.ranks = sampling, concurrency, ranks
        self.on_episode: Callable[[], None] = lambda: None

    def play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path | None) -> Collection:  # noqa: ARG002
        """The episodes that the first process plays meanwhile."""
        while self.ranks.gather(None)[0] == _PLAYING:
            self.on_episode()
        return pooled(Collection(rows=[], failures=[]), self.ranks, tasks, repeats, NAME, None)

    def update(self, version: int, named_tensors: Any) -> None:  # noqa: ARG002
        """Take part in the gathering of weights."""
        for _ in named_tensors:
            pass

    def close(self) -> None:
        """Nothing is held."""


class GymPlayer:
    """Plays tasks by the gym's agents; see `regimen.pipelines.batches.EpisodePlayer`."""

    def __init__(
        self,
        server: GymServer,
        sampling: Sampling,
        concurrency: int,
        model_name: str,
        agent: str | None,
        ranks: Ranks,
    ) -> None:
        self.server = server
        self.sampling = sampling
        self.concurrency = concurrency
        self.model_name = model_name
        self.agent = agent
        self.ranks = ranks
        self.on_episode: Callable[[], None] = lambda: None

    def play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path | None) -> Collection:
        """Play `tasks`, `repeats` times each, with the weights of `step`; then leave the memory to training."""
        if self.ranks.size == 1:
            return self.server.run(self._play(tasks, repeats, seed, step, output))
        meanwhile = partial(self.ranks.gather, _PLAYING)
        played = self.server.run(self._play(tasks, repeats, seed, step, output), meanwhile)
        self.ranks.gather(None)
        return pooled(played, self.ranks, tasks, repeats, NAME, None)  # the file is written already

    async def _play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path | None) -> Collection:
        engine = self.server.engine
        engine.begin(self.sampling, seed, step)
        engine.resume()
        try:
            played = await collect_episodes(
                tasks,
                repeats,
                Collector(name=NAME, identity={}, settings={}, play=self._one),
                concurrency=self.concurrency,
                output=output,
                overwrite=True,
                on_row=lambda _: self.on_episode(),
                max_failure_rate=MAX_FAILURE_RATE,
            )
        finally:
            await engine.pause()
        await engine.generation.release()
        return played

    async def _one(self, task: Task, repeat: int) -> Row:
        agent = self.server.agents[cast("str", agent_of(task, self.agent))]
        row = await agent.play(task, repeat, self.sampling)
        return row if is_failure(row) else trainable(row, self.server.engine)

    def update(self, version: int, named_tensors: Any) -> None:
        """Hand new weights to the server."""
        self.server.run(self.server.engine.update(version, named_tensors))

    def close(self) -> None:
        """End the server and free the generation."""
        self.server.close()


def agent_of(task: Task, otherwise: str | None) -> str | None:
    """The agent that plays a task: the one that its row names, else the configured one."""
    reference = task.row.get("agent_ref")
    name = cast("Row", reference).get("name") if isinstance(reference, dict) else None
    return name if isinstance(name, str) else otherwise


def trainable(row: Row, engine: TrainingEngine) -> Row:
    """The row with the weights that sampled it; a failure where its tokens cannot be trained."""
    renderer = cast("Renderer", engine.renderer)
    try:
        turns = turns_of(row["response"]["output"])
    except RolloutError as error:
        return _failed(row, f"the episode's token ids cannot be read: {error}")
    if not turns:
        return _failed(
            row,
            "the episode has no token ids: start the gym with a model server that returns them "
            f"(vllm_model with return_token_id_information), and let it ask {engine.served.name!r} here",
        )
    versions = [engine.version_of(turn.prompt_ids, turn.generation_ids) for turn in turns]
    if None in versions:
        return _failed(
            row, "the episode's token ids were not sampled by this run: does the gym's model server ask another model?"
        )
    own = {"tokenizer": renderer.fingerprint, "template": renderer.template_fingerprint}
    stamp = {**row["regimen"], **own, "weight_version": min(version for version in versions if version is not None)}
    return {"num_turns": len(turns), **row, "regimen": stamp}


def _failed(row: Row, reason: str) -> Row:
    kept = {key: value for key, value in row.items() if key != "reward"}
    outcome = Outcome.ENVIRONMENT_FAILED.value
    stamp = {**row["regimen"], "outcome": outcome, "reason": reason}
    return {**kept, **failure_fields(outcome, GymError.__name__, reason), "regimen": stamp}


def gym_player(
    config: TrainConfig,
    generation: Generation,
    renderer: Renderer,
    sampling: Sampling,
    concurrency: int,
    tasks: list[Task],
    ranks: Ranks,
) -> GymPlayer:
    """The player of a configuration whose tasks a gym plays; its model is served from here on."""
    section = nemo_gym_of(config)
    assert section is not None  # the caller holds it
    held_out = config.data.validation
    names = _agents([*tasks, *(tasks_of_gym(held_out) if held_out is not None else [])], section)
    file = None if section.model_server_token_file is None else Path(section.model_server_token_file)
    token = token_for(section.model_server_host, file)
    if token is None or token.is_new:
        raise missing_token()
    policy = config.policy
    name = section.model_name or policy.model_name
    served = Served(
        name=name,
        max_length=policy.max_total_sequence_length,
        vocabulary_size=vocabulary_size(policy.model_name, renderer, trust=policy.trust_remote_code),
        sampling=sampling,
        with_token_ids=True,
    )
    engine = TrainingEngine(generation, cast("TextRenderer", renderer), served)
    engine.begin(sampling, config.seed, 0)
    server = GymServer(engine, section.model_server_host, section.model_server_port, token.value)
    try:
        server.run(server.find(section.head_server_url or "", names, section.episode_seconds))
    except EndpointError as error:
        server.close()
        raise GymError(
            f"the gym does not answer: {error.message}", where=error.where, fix=f"start it: {start_command(config)}"
        ) from error
    except BaseException:
        server.close()
        raise
    return GymPlayer(server, sampling, concurrency, name, section.agent, ranks)


def _agents(tasks: list[Task], section: NemoGymConfig) -> list[str]:
    """The agents that the tasks name."""
    names = {agent_of(task, section.agent) for task in tasks}
    if None in names:
        missing = next(task.index for task in tasks if agent_of(task, section.agent) is None)
        raise ConfigError(
            f"task {missing} names no agent",
            where=f"{PATH}.agent",
            expected="agent_ref.name in each row, or one agent for all rows without it",
            fix=f"set {PATH}.agent",
        )
    return sorted(cast("set[str]", names))

"""The agent: plays one episode of a task, turn by turn, and returns it as a NeMo Gym row.

In: a task, an environment, a generation, a renderer. Out: one finished row, with token ids and log-probabilities, or a
failure row with a typed outcome; a bad episode is data, never an exception. Only cancellation passes through.
History is never rendered again: the next prompt is the previous prompt, the sampled ids and the ids of what follows.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar, cast

import msgspec

from regimen.errors import GymError
from regimen.generation.base import Generation, Sample, Sampling
from regimen.gym.environment import Environment, Task, ToolError, Verdict
from regimen.gym.protocol import (
    assistant_items,
    failure_fields,
    request_params,
    response_object,
    stamps,
    tool_output_item,
)
from regimen.rollouts.messages import chat_tools, input_messages
from regimen.rollouts.outcomes import Outcome

Message = dict[str, Any]
Result = TypeVar("Result")


class Renderer(Protocol):
    """What the agent needs of `regimen.tokens.template.Renderer`."""

    fingerprint: str
    template_fingerprint: str
    stop_ids: tuple[int, ...]

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Message]) -> list[int]:
        """Ids of a conversation, the header of the assistant's turn included."""
        ...

    def continuation_ids(self, assistant: Message, appended: Sequence[Message], tools: Sequence[Message]) -> list[int]:
        """Ids between the sampled ids of `assistant` and its next turn."""
        ...

    def parse_assistant(self, ids: Sequence[int]) -> Message:
        """The chat message in sampled ids."""
        ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What ends an episode early. `max_turns` None takes the environment's; a time of None waits forever.

    `call_seconds` bounds each call of the environment (seed, tool, verify, close), `episode_seconds` the whole, the
    waiting for the model included.
    """

    max_turns: int | None = None
    max_sequence_length: int = 4096
    episode_seconds: float | None = 600.0
    call_seconds: float | None = 120.0


def episode_seed(run_seed: int, step: int, task_index: int, rollout_index: int, turn: int) -> int:
    """The seed of one model call: 63 bits, the same on every machine."""
    key = f"{run_seed}/{step}/{task_index}/{rollout_index}/{turn}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


async def play(
    task: Task,
    rollout_index: int,
    environment: Environment,
    generation: Generation,
    renderer: Renderer,
    sampling: Sampling,
    seed: int,
    limits: Limits | None = None,
    *,
    step: int = 0,
    model_name: str = "policy",
) -> dict[str, Any]:
    """Play one episode; `seed` is the run's, from which with `step` and the indices each turn's seed comes."""
    if not sampling.stop_ids:
        sampling = msgspec.structs.replace(sampling, stop_ids=renderer.stop_ids)
    episode = _Episode(task, rollout_index, environment, generation, renderer, sampling, limits or Limits())
    episode.seed, episode.step, episode.model_name = seed, step, model_name
    await episode.run()
    return episode.row()


class _FailedError(Exception):
    """An episode that failed for a reason that is not the model's answer."""

    def __init__(self, outcome: Outcome, cause: BaseException) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.outcome = outcome
        self.kind = type(cause).__name__


def _outcome_of(error: Exception, otherwise: Outcome) -> Outcome:
    return error.outcome if isinstance(error, _FailedError) else otherwise


class _Episode:
    """One episode while it is played: the prompt so far, the items, the counts, and how it ended."""

    seed: int = 0
    step: int = 0
    model_name: str = "policy"

    def __init__(
        self,
        task: Task,
        rollout_index: int,
        environment: Environment,
        generation: Generation,
        renderer: Renderer,
        sampling: Sampling,
        limits: Limits,
    ) -> None:
        self.task = task
        self.rollout_index = rollout_index
        self.environment = environment
        self.generation = generation
        self.renderer = renderer
        self.sampling = sampling
        self.limits = limits
        self.params: dict[str, Any] = task.row["responses_create_params"]
        self.created_at = time.time()
        self.prompt_ids: list[int] = []
        self.output: list[dict[str, Any]] = []
        self.samples: list[Sample] = []
        self.tools: list[Message] = []
        self.counts = {"num_turns": 0, "num_tool_calls": 0, "num_tool_errors": 0, "num_malformed_calls": 0}
        self.num_input_tokens = 0
        self.call_ids: set[str] = set()
        self.outcome = Outcome.OK
        self.reason: str | None = None
        self.failure: _FailedError | None = None
        self.verdict: Verdict | None = None

    async def run(self) -> None:
        """Play, verify and close, inside the time limit; every end is recorded in `outcome` and `reason`."""
        scope = asyncio.timeout(self.limits.episode_seconds)
        try:
            async with scope:
                await self._play_in_session()
        except TimeoutError as error:
            if self.verdict is not None:  # judged in time, only slow to close
                self.counts["num_close_errors"] = 1
                return
            self._fail(_FailedError(Outcome.TIMED_OUT, error))
            self.reason = f"longer than {self.limits.episode_seconds:g} seconds"
        except _FailedError as failure:
            self._fail(failure)

    def _fail(self, failure: _FailedError) -> None:
        self.failure, self.outcome, self.reason = failure, failure.outcome, str(failure)

    async def _play_in_session(self) -> None:
        try:
            session = await self._bounded(self.environment.seed(self.task))
        except Exception as error:
            raise _FailedError(_outcome_of(error, Outcome.ENVIRONMENT_FAILED), error) from error
        try:
            await self._turns(session)
            self.verdict = await self._verify(session)
        finally:
            await self._close(session)

    async def _bounded(self, call: Awaitable[Result]) -> Result:
        """Await a call of the environment for at most `call_seconds`."""
        scope = asyncio.timeout(self.limits.call_seconds)
        try:
            async with scope:
                return await call
        except TimeoutError as error:
            if not scope.expired():  # the environment's own
                raise
            slow = TimeoutError(f"a call of the environment took longer than {self.limits.call_seconds:g} seconds")
            raise _FailedError(Outcome.TIMED_OUT, slow) from error

    async def _turns(self, session: Any) -> None:
        try:
            self.tools = chat_tools(self.params)
            self.prompt_ids = self.renderer.prompt_ids(input_messages(self.params), self.tools)
        except Exception as error:
            raise _FailedError(Outcome.ENVIRONMENT_FAILED, error) from error
        max_turns = self.limits.max_turns or self.environment.max_turns
        for turn in range(max_turns):
            sample = await self._sample(turn)
            if sample is None:
                return self._truncate("max_sequence_length")
            message = self._record(sample, turn)
            if sample.stop_reason == "length":
                return self._truncate("max_new_tokens")
            calls = cast("list[dict[str, Any]]", message.get("tool_calls") or [])
            if not calls:
                return None
            replies = [await self._call(session, call) for call in calls]
            self._continue(message, sample, replies)
        return self._truncate("max_turns")

    def _truncate(self, reason: str) -> None:
        self.outcome, self.reason = Outcome.TRUNCATED, reason

    async def _sample(self, turn: int) -> Sample | None:
        """The next model call, or None when the conversation so far leaves no room for an answer.

        A task whose own prompt leaves none says nothing about the model: that episode failed.
        """
        room = self.limits.max_sequence_length - len(self.prompt_ids)
        if room <= 0 and not self.samples:
            size, limit = len(self.prompt_ids), self.limits.max_sequence_length
            error = GymError(f"prompt of {size} tokens leaves no room in max_sequence_length {limit}")
            raise _FailedError(Outcome.ENVIRONMENT_FAILED, error)
        if room <= 0:
            return None
        sampling = msgspec.structs.replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        seed = episode_seed(self.seed, self.step, self.task.index, self.rollout_index, turn)
        try:
            return await self.generation.sample(self.prompt_ids, sampling, seed)
        except Exception as error:
            raise _FailedError(Outcome.MODEL_FAILED, error) from error

    def _record(self, sample: Sample, turn: int) -> Message:
        """Append the items of a model call; returns its chat message, call ids made unique in the episode."""
        try:
            message = self.renderer.parse_assistant(sample.ids)
        except Exception as error:
            raise _FailedError(Outcome.MODEL_FAILED, error) from error
        for index, call in enumerate(message.get("tool_calls") or []):
            if not call.get("id") or call["id"] in self.call_ids:
                call["id"] = f"{call.get('id') or 'call'}_{turn}_{index}"
            self.call_ids.add(call["id"])
        prefix = f"{self.task.index}_{self.rollout_index}_{turn}"
        self.output.extend(assistant_items(message, self.prompt_ids, sample, prefix))
        self.samples.append(sample)
        self.num_input_tokens += len(self.prompt_ids)
        self.counts["num_turns"] += 1
        self.counts["num_tool_calls"] += len(message.get("tool_calls") or [])
        self.counts["num_malformed_calls"] += int(message.get("malformed_calls") or 0)
        return message

    async def _call(self, session: Any, call: dict[str, Any]) -> Message:
        """Run one tool call and append its output; what the tool refuses is told to the model."""
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        try:
            parsed = self._checked_arguments(name, arguments)
            text = await self._bounded(self.environment.call(session, name, parsed))
        except ToolError as error:
            self.counts["num_tool_errors"] += 1
            text = error.message
        except Exception as error:
            raise _FailedError(_outcome_of(error, Outcome.ENVIRONMENT_FAILED), error) from error
        self.output.append(tool_output_item(call["id"], text))
        return {"role": "tool", "tool_call_id": call["id"], "name": name, "content": text}

    def _checked_arguments(self, name: str, arguments: str) -> dict[str, Any]:
        known = [tool["function"]["name"] for tool in self.tools]
        if name not in known:
            raise ToolError(f"Error: unknown tool '{name}'; use {', '.join(known) or 'no tool'}")
        try:
            parsed: object = json.loads(arguments)
        except (json.JSONDecodeError, RecursionError):
            raise ToolError(f"Error: the arguments of {name} are not JSON") from None
        if not isinstance(parsed, dict):
            raise ToolError(f"Error: the arguments of {name} must be a JSON object")
        return cast("dict[str, Any]", parsed)

    def _continue(self, message: Message, sample: Sample, replies: list[Message]) -> None:
        try:
            following = self.renderer.continuation_ids(message, replies, self.tools)
        except Exception as error:
            raise _FailedError(Outcome.ENVIRONMENT_FAILED, error) from error
        self.prompt_ids = [*self.prompt_ids, *sample.ids, *following]

    async def _verify(self, session: Any) -> Verdict:
        try:
            verdict = await self._bounded(self.environment.verify(session, self.task, self.output))
            if not math.isfinite(verdict.reward):
                raise ValueError(f"the verifier's reward is {verdict.reward}")
        except Exception as error:
            raise _FailedError(_outcome_of(error, Outcome.VERIFIER_FAILED), error) from error
        return verdict

    async def _close(self, session: Any) -> None:
        try:
            await self._bounded(self.environment.close(session))
        except Exception as error:  # the episode is over and judged; what is left is a note in its row
            self.counts["num_close_errors"] = 1
            self.reason = self.reason or f"close failed: {error}"

    def row(self) -> dict[str, Any]:
        """The episode as a row; a failed one has the failure fields and no reward."""
        params = request_params(self.params, self.sampling)
        row: dict[str, Any] = {"responses_create_params": params, "response": self._response(params)}
        if self.failure is not None or self.verdict is None:
            kind = self.failure.kind if self.failure else "RuntimeError"
            row |= failure_fields(self.outcome.value, kind, self.reason or "")
        else:
            row |= self._verdict_fields(self.verdict)
        name = self.environment.name
        return {**row, **stamps(self.task.index, self.rollout_index, name), "regimen": self._stamp()}

    def _verdict_fields(self, verdict: Verdict) -> dict[str, Any]:
        components = {"reward_components": verdict.components} if verdict.components else {}
        fixed = {"reward": float(verdict.reward), "mask_sample": False, "failure_kind": None, "failure_reason": None}
        return {**self.counts, **verdict.metrics, **components, **fixed}

    def _response(self, params: dict[str, Any]) -> dict[str, Any]:
        key = f"{self.environment.name}/{self.task.index}/{self.rollout_index}/{self.step}/{self.seed}"
        return response_object(
            response_id=f"resp_{hashlib.sha256(key.encode()).hexdigest()[:32]}",
            created_at=self.created_at,
            model=self.model_name,
            params=params,
            output=self.output,
            num_input_tokens=self.num_input_tokens,
            num_output_tokens=sum(len(sample.ids) for sample in self.samples),
            incomplete=self.reason if self.outcome is Outcome.TRUNCATED else None,
        )

    def _stamp(self) -> dict[str, Any]:
        return {
            "tokenizer": self.renderer.fingerprint,
            "template": self.renderer.template_fingerprint,
            "weight_version": min((sample.weight_version for sample in self.samples), default=0),
            "outcome": self.outcome.value,
            "reason": self.reason,
            "stop_reasons": [sample.stop_reason for sample in self.samples],
            "seed": self.seed,
            "step": self.step,
        }

"""The agent: plays one episode of a task, turn by turn, and returns it as a NeMo Gym row.

In: a task, an environment, and a generation with a renderer or a model that takes messages. Out: one finished row, with
token ids and log-probabilities where they are known, or a failure row with a typed outcome; a bad episode is data,
never an exception. Only cancellation passes through.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import msgspec

from regimen.errors import ConfigError
from regimen.generation.base import ChatModel, Generation, Reply, Sampling
from regimen.gym.conversation import Conversation, Message, MessageConversation, Renderer, TokenConversation
from regimen.gym.environment import Environment, Task, ToolError, Verdict
from regimen.gym.protocol import (
    assistant_items,
    failure_fields,
    observation_item,
    request_params,
    response_object,
    stamps,
    tool_output_item,
    verdict_fields,
)
from regimen.rollouts.messages import chat_tools, input_messages
from regimen.rollouts.outcomes import Outcome

__all__ = ["Limits", "Renderer", "checked_arguments", "episode_seed", "play", "play_with"]

Result = TypeVar("Result")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What ends an episode early. `max_turns` None takes the environment's; a time of None waits forever.

    `call_seconds` bounds each call of the environment (seed, tool, observe, verify, close), `episode_seconds` the
    whole, the waiting for the model included.
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
    conversation = TokenConversation(generation, renderer)
    return await _played(task, rollout_index, environment, conversation, sampling, limits, seed, step, model_name)


async def play_with(
    task: Task,
    rollout_index: int,
    environment: Environment,
    model: ChatModel,
    sampling: Sampling,
    seed: int,
    limits: Limits | None = None,
    *,
    step: int = 0,
    model_name: str = "policy",
) -> dict[str, Any]:
    """`play` with a model that takes messages."""
    conversation = MessageConversation(model)
    return await _played(task, rollout_index, environment, conversation, sampling, limits, seed, step, model_name)


async def _played(
    task: Task,
    rollout_index: int,
    environment: Environment,
    conversation: Conversation,
    sampling: Sampling,
    limits: Limits | None,
    seed: int,
    step: int,
    model_name: str,
) -> dict[str, Any]:
    episode = _Episode(task, rollout_index, environment, conversation, sampling, limits or Limits())
    episode.seed, episode.step, episode.model_name = seed, step, model_name
    await episode.run()
    return episode.row()


def checked_arguments(name: str, arguments: str, tools: list[Message]) -> dict[str, Any]:
    """The arguments of a call of one of the `tools`; raises `ToolError` with a text for the model."""
    known = [tool["function"]["name"] for tool in tools]
    if name not in known:
        raise ToolError(f"Error: unknown tool '{name}'; use {', '.join(known) or 'no tool'}")
    try:
        parsed: object = json.loads(arguments)
    except (json.JSONDecodeError, RecursionError):
        raise ToolError(f"Error: the arguments of {name} are not JSON") from None
    if not isinstance(parsed, dict):
        raise ToolError(f"Error: the arguments of {name} must be a JSON object")
    return cast("dict[str, Any]", parsed)


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
        conversation: Conversation,
        sampling: Sampling,
        limits: Limits,
    ) -> None:
        self.task = task
        self.rollout_index = rollout_index
        self.environment = environment.playing(task)
        self.conversation = conversation
        self.sampling = sampling
        self.limits = limits
        self.params: dict[str, Any] = task.row["responses_create_params"]
        self.created_at = time.time()
        self.output: list[dict[str, Any]] = []
        self.replies: list[Reply] = []
        self.tools: list[Message] = []
        self.counts = {"num_turns": 0, "num_tool_calls": 0, "num_tool_errors": 0, "num_malformed_calls": 0}
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
        session = await self._asked(self.environment.seed(self.task))
        try:
            await self._turns(session)
            self.verdict = await self._verify(session)
        finally:
            await self._close(session)

    async def _asked(self, call: Awaitable[Result]) -> Result:
        """What the environment gives; what it raises fails the episode."""
        try:
            return await self._bounded(call)
        except Exception as error:
            raise _FailedError(_outcome_of(error, Outcome.ENVIRONMENT_FAILED), error) from error

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
            self.conversation.begin(input_messages(self.params), self.tools)
        except Exception as error:
            raise _FailedError(Outcome.ENVIRONMENT_FAILED, error) from error
        max_turns = self.limits.max_turns or self.environment.max_turns
        for turn in range(max_turns):
            reply = await self._reply(turn)
            if reply is None:
                return self._truncate("max_sequence_length")
            self._record(reply, turn)
            if reply.stop_reason == "length":
                return self._truncate("max_new_tokens")
            calls = cast("list[dict[str, Any]]", reply.message.get("tool_calls") or [])
            appended = await self._following(session, calls)
            if not appended:
                return None
            self._continue(reply, appended)
        return self._truncate("max_turns")

    def _truncate(self, reason: str) -> None:
        self.outcome, self.reason = Outcome.TRUNCATED, reason

    async def _reply(self, turn: int) -> Reply | None:
        """The next model call, or None when the conversation so far leaves no room for an answer.

        A task whose own prompt leaves none says nothing about the model: that episode failed.
        """
        size, limit = self.conversation.num_tokens(), self.limits.max_sequence_length
        if size >= limit and not self.replies:
            error = ConfigError(f"prompt of {size} tokens leaves no room in max_sequence_length {limit}")
            raise _FailedError(Outcome.ENVIRONMENT_FAILED, error)
        if size >= limit:
            return None
        new_tokens = min(self.sampling.max_new_tokens, limit - size)
        sampling = msgspec.structs.replace(self.sampling, max_new_tokens=new_tokens)
        seed = episode_seed(self.seed, self.step, self.task.index, self.rollout_index, turn)
        try:
            return await self.conversation.reply(sampling, seed)
        except Exception as error:
            raise _FailedError(Outcome.MODEL_FAILED, error) from error

    def _record(self, reply: Reply, turn: int) -> None:
        """Append the items of a model call, call ids made unique in the episode."""
        calls = cast("list[dict[str, Any]]", reply.message.get("tool_calls") or [])
        for index, call in enumerate(calls):
            if not call.get("id") or call["id"] in self.call_ids:
                call["id"] = f"{call.get('id') or 'call'}_{turn}_{index}"
            self.call_ids.add(call["id"])
        self.output.extend(assistant_items(reply, f"{self.task.index}_{self.rollout_index}_{turn}"))
        self.replies.append(reply)
        self.counts["num_turns"] += 1
        self.counts["num_tool_calls"] += len(calls)
        self.counts["num_malformed_calls"] += int(reply.message.get("malformed_calls") or 0)

    async def _following(self, session: Any, calls: list[dict[str, Any]]) -> list[Message]:
        """The messages behind a turn; none where the episode ends with it."""
        if not self.environment.answers_turns:
            return [await self._call(session, call) for call in calls] or await self._observed(session)
        said = await self._asked(self.environment.respond(session, self.output)) or []
        for message in said:
            text = message["content"]
            is_tool = message["role"] == "tool"
            self.output.append(tool_output_item(message["tool_call_id"], text) if is_tool else observation_item(text))
        return said

    async def _call(self, session: Any, call: dict[str, Any]) -> Message:
        """Run one tool call and append its output; what the tool refuses is told to the model."""
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        try:
            parsed = checked_arguments(name, arguments, self.tools)
            text = await self._bounded(self.environment.call(session, name, parsed))
        except ToolError as error:
            self.counts["num_tool_errors"] += 1
            text = error.message
        except Exception as error:
            raise _FailedError(_outcome_of(error, Outcome.ENVIRONMENT_FAILED), error) from error
        self.output.append(tool_output_item(call["id"], text))
        return {"role": "tool", "tool_call_id": call["id"], "name": name, "content": text}

    async def _observed(self, session: Any) -> list[Message]:
        """What the environment says to a turn without calls; nothing where the episode ends with it."""
        said = await self._asked(self.environment.observe(session, self.output))
        if not isinstance(cast("object", said), str | None):
            error = TypeError(f"observe() gave {type(said).__name__}, not a text or None")
            raise _FailedError(Outcome.ENVIRONMENT_FAILED, error) from error
        if said is None:
            return []
        self.output.append(observation_item(said))
        return [{"role": "user", "content": said}]

    def _continue(self, reply: Reply, appended: list[Message]) -> None:
        try:
            self.conversation.extend(reply, appended)
        except Exception as error:
            raise _FailedError(Outcome.ENVIRONMENT_FAILED, error) from error

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
            row |= {**self.counts, **verdict_fields(self.verdict)}
        name = self.environment.name
        return {**row, **stamps(self.task.index, self.rollout_index, name), "regimen": self._stamp()}

    def _response(self, params: dict[str, Any]) -> dict[str, Any]:
        key = f"{self.environment.name}/{self.task.index}/{self.rollout_index}/{self.step}/{self.seed}"
        return response_object(
            response_id=f"resp_{hashlib.sha256(key.encode()).hexdigest()[:32]}",
            created_at=self.created_at,
            model=self.model_name,
            params=params,
            output=self.output,
            num_input_tokens=sum(reply.num_input_tokens for reply in self.replies),
            num_output_tokens=sum(reply.num_output_tokens for reply in self.replies),
            incomplete=self.reason if self.outcome is Outcome.TRUNCATED else None,
        )

    def _stamp(self) -> dict[str, Any]:
        return {
            "tokenizer": self.conversation.fingerprint,
            "template": self.conversation.template_fingerprint,
            "weight_version": min((reply.weight_version for reply in self.replies), default=0),
            "outcome": self.outcome.value,
            "reason": self.reason,
            "stop_reasons": [reply.stop_reason for reply in self.replies],
            "seed": self.seed,
            "step": self.step,
        }

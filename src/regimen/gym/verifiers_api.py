"""Environments of the package `verifiers` from 0.1.14 to 0.3: modules with `load_environment(**arguments)`.

In: the name of an installed module, and the arguments of its `load_environment`. Out: an environment whose tasks are
the rows of the module's data sets. Regimen samples every turn; the module's environment says what follows it (tool
outputs, user messages) and when the episode is over, and its rubric judges: the reward, as components each reward
function's value times its weight, as metrics the bare values (`rubric/<name>`).
What the environment or a reward function raises fails the episode; the package itself would count it as 0.
Refuses: a missing package or one without these environments, modules and arguments that do not load, environments that
ask the model themselves or rewrite the conversation, rubrics without rewards or over groups, and all but text.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from regimen.errors import ConfigError, GymError
from regimen.gym.environment import SPLITS, Environment, Split, Task, Verdict
from regimen.gym.generated import first_tasks, split_of
from regimen.gym.verifiers_module import check_environment, check_package, leaves, loaded, package_version, unusable
from regimen.rollouts.messages import chat_tools, input_messages, output_messages

NAME = "verifiers"
UNLIMITED_TURNS = 100  # where the environment sets no limit
Message = dict[str, Any]
Row = dict[str, Any]
Result = TypeVar("Result")


class Session:
    """An episode: the package's state, the messages of the last prompt, how much of the output it has seen."""

    def __init__(self, state: Any, prompt: list[Any]) -> None:
        self.state = state
        self.prompt = prompt
        self.num_items = 0
        self.is_cleaned = False


class VerifiersEnvironment(Environment):
    """The environment that `module` loads. See docs/environments.md."""

    name = NAME
    answers_turns = True

    def __init__(self, *, module: str = "", arguments: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.where = f"environment 'verifiers', module {module!r}"
        check_package()
        self.types = importlib.import_module("verifiers.types")
        self.normalized = importlib.import_module("verifiers.utils.message_utils").normalize_messages
        self.environment = loaded(module, dict(arguments or {}), self.where)
        check_environment(self.environment, self.where)
        self.rubric = self.environment.rubric
        _watch_rewards(self.rubric)
        limit = self.environment.max_turns
        self.max_turns = limit if limit > 0 else UNLIMITED_TURNS
        made_by = {"module": module, "arguments": dict(arguments or {}), "verifiers": package_version()}
        self.judged_by = {**self.judged_by, **made_by}
        self._rows: dict[Split, list[Row]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` rows of `split`, in the order of the module's data sets."""
        rows = self._rows = self._rows or self._split_rows()
        if split in rows and not rows[split]:
            raise ConfigError(f"there is no {split} task", where=self.where, fix="give its data sets more rows")
        sizes: dict[Split, int] = {name: len(found) for name, found in rows.items()}
        return first_tasks(split, num_tasks, sizes, lambda name, count: rows[name][:count])

    def _split_rows(self) -> dict[Split, list[Row]]:
        """Rows by hash. Where the module has an evaluation set, that is all of test, and in no other split."""
        rows: dict[Split, list[Row]] = {split: [] for split in SPLITS}
        environment = self.environment
        evaluated: set[str] = set()
        has_evaluation = environment.eval_dataset_source is not None
        try:
            held = list(environment.get_eval_dataset()) if has_evaluation else []
            given = list(environment.get_dataset()) if environment.dataset_source is not None else []
        except Exception as error:  # the boundary to code of others
            raise unusable(error, "its data set cannot be built", self.where) from error
        for record in held:
            evaluated.add(self._key(record))
            rows["test"].append(self._row(record, "test"))
        for record in given:
            key = self._key(record)
            split = split_of(NAME, key)
            if has_evaluation and split == "test":
                split = "train"
            if key not in evaluated:
                rows[split].append(self._row(record, split))
        return rows

    def _key(self, record: Row) -> str:
        """What a row of a data set asks, whatever its number."""
        try:
            asked = {key: value for key, value in record.items() if key != "example_id"}
            return json.dumps(asked, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"a row of its data set is no JSON ({error})",
                where=self.where,
                expected="texts, numbers, lists and objects",
            ) from error

    def _row(self, record: Row, split: Split) -> Row:
        prompt = [{"type": "message", **message} for message in self._spoken(self.normalized(record["prompt"]))]
        info = record.get("info")
        held = cast("object", json.loads(info)) if isinstance(info, str) and info else info
        own = cast("Row", held).get("tool_defs") if isinstance(held, dict) else None
        tools = _tools(self.environment.tool_defs if own is None else own)
        return {
            "responses_create_params": {"input": prompt, **({"tools": tools} if tools else {})},
            "verifiers": record,
            "split": split,
            "agent_ref": {"name": self.name},
        }

    def _spoken(self, messages: Sequence[Any]) -> list[Message]:
        """Messages of the package as role and text; tool outputs with the id of their call."""
        found: list[Message] = []
        for message in messages:
            held: Message = message.model_dump(exclude_none=True)
            content, role = held.get("content") or "", held["role"]
            if not isinstance(content, str) or held.get("tool_calls"):
                raise GymError(f"a {role} message holds more than text", where=self.where, expected="text")
            call = {"tool_call_id": held["tool_call_id"]} if role == "tool" else {}
            found.append({"role": "user" if role == "text" else role, "content": content, **call})
        return found

    async def seed(self, task: Task) -> Session:
        """The package's state of an episode, set up."""
        return await self._run(self._begun(task))

    async def _begun(self, task: Task) -> Session:
        environment, params = self.environment, task.row["responses_create_params"]
        state = await environment.init_state(task.row["verifiers"], _no_model(self.where), "policy", {})
        state = await environment.setup_state(state) or state
        if await environment.is_completed(state):
            _raise_error(state)
            raise GymError("the episode is over before its first turn", where=self.where)
        prompt = self.normalized(await environment.get_prompt_messages(state))
        same_prompt = self._spoken(prompt) == input_messages(params)
        if not same_prompt or _tools(state["tool_defs"]) != _tools_of(params):
            raise GymError(
                f"its setup changes the {'tools' if same_prompt else 'prompt'} of the task's row",
                where=self.where,
                fix="give them in the data set, as `prompt` and `info.tool_defs`; tasks of a file need the same module",
            )
        return Session(state, prompt)

    async def respond(self, session: Session, output: list[dict[str, Any]]) -> list[Message] | None:
        """What the package's environment answers to the last turn; None where one of its conditions stops it."""
        return await self._run(self._answered(session, output))

    async def _answered(self, session: Session, output: list[dict[str, Any]]) -> list[Message] | None:
        environment, state = self.environment, session.state
        await self._take_turn(session, output, is_truncated=False)
        if await environment.is_completed(state):
            _raise_error(state)
            return None
        turn = state["trajectory"][-1]
        before = [*turn["prompt"], *turn["completion"]]
        prompt = self.normalized(await environment.get_prompt_messages(state))
        if state.get("final_env_response") is not None:
            await environment.is_completed(state)
            return None
        added = self._spoken(prompt[len(before) :])
        if prompt[: len(before)] != before or any(message["role"] not in ("tool", "user") for message in added):
            raise GymError(
                "the environment rewrites the conversation", where=self.where, expected="tool and user messages behind"
            )
        if not added:
            raise GymError("the environment neither answers nor stops", where=self.where)
        session.prompt = prompt
        names = {str(item["call_id"]): str(item["name"]) for item in output if item["type"] == "function_call"}
        return [{"name": names.get(m["tool_call_id"], ""), **m} if m["role"] == "tool" else m for m in added]

    async def _take_turn(self, session: Session, output: list[dict[str, Any]], *, is_truncated: bool) -> None:
        """Hand the turn at the end of `output` to the package, if it has not seen it."""
        fresh = [m for m in output_messages(output[session.num_items :]) if m["role"] == "assistant"]
        session.num_items = len(output)
        if not fresh:
            return
        said = fresh[-1]
        calls = [
            self.types.ToolCall(id=call["id"], **call["function"])
            for call in cast("list[dict[str, Any]]", said.get("tool_calls") or [])
        ]
        message = self.types.ResponseMessage(
            content=said["content"],
            reasoning_content=said.get("reasoning_content"),
            tool_calls=calls or None,
            finish_reason="length" if is_truncated else "tool_calls" if calls else "stop",
            is_truncated=is_truncated,
        )
        response = self.types.Response(id="", created=0, model="policy", message=message)
        await self.environment.add_model_response(session.state, session.prompt, response)

    async def verify(self, session: Session, task: Task, output: list[dict[str, Any]]) -> Verdict:
        """What the rubric says."""
        return await self._run(self._judged(session, task, output))

    async def _judged(self, session: Session, task: Task, output: list[dict[str, Any]]) -> Verdict:
        state = session.state
        await self._take_turn(session, output, is_truncated=True)
        await self._clean(session)
        scores: list[_Score] = []
        _SCORES.set(scores)
        await self.rubric.score_rollout(state)
        components: dict[str, float] = {}
        metrics: dict[str, float | str | bool | None] = {"stop_condition": state.get("stop_condition")}
        for name, weight, value in scores:
            if not isinstance(value, Exception):
                metrics[f"rubric/{name}"] = value
                if weight:
                    components[name] = components.get(name, 0.0) + weight * value
            elif weight:
                raise GymError(
                    f"the reward function {name!r} failed ({type(value).__name__}: {value})", where=self.where
                ) from value
        return Verdict(float(state["reward"]), components, {**metrics, "split": task.row.get("split")})

    async def close(self, session: Session) -> None:
        """Free what the episode holds."""
        await self._run(self._closed(session))

    async def _closed(self, session: Session) -> None:
        await self._clean(session)
        await self.rubric.cleanup(session.state)

    async def _clean(self, session: Session) -> None:
        """End the episode as the package does before it judges: its `completion` is written here."""
        if not session.is_cleaned:
            session.is_cleaned = True
            await self.environment.cleanup(session.state)

    async def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run in an event loop of a thread of its own: what others wrote may block, and its clients keep to a loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="verifiers", daemon=True).start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


_Score = tuple[str, float, float | Exception]
# What the reward functions gave or raised in the judging that runs: the package turns what they raise into 0.
_SCORES: ContextVar[list[_Score] | None] = ContextVar("scores", default=None)


def _note(name: str, weight: float, value: float | Exception) -> None:
    scores = _SCORES.get()
    if scores is not None:  # an environment may ask a reward function while it plays
        scores.append((name, weight, value))


def _watch_rewards(rubric: Any) -> None:
    for leaf in leaves(rubric):
        leaf.funcs = [_watched(function, weight) for function, weight in zip(leaf.funcs, leaf.weights, strict=True)]


def _watched(function: Callable[..., Any], weight: float) -> Callable[..., Any]:
    """`function`, whose values and errors are noted."""
    name = str(getattr(function, "__name__", type(function).__name__))

    @functools.wraps(function)
    async def called(*args: Any, **kwargs: Any) -> float:
        try:
            value = function(*args, **kwargs)
            number = float(await value if inspect.isawaitable(value) else value)
            if not math.isfinite(number):
                raise ValueError(f"it gave {number}")
        except Exception as error:
            _note(name, weight, error)
            raise
        _note(name, weight, number)
        return number

    return called


def _tools(definitions: Sequence[Any] | None) -> list[Row]:
    """The package's tools as function tools."""
    found: list[Row] = []
    for one in definitions or ():
        held = cast("Row", one if isinstance(one, dict) else one.model_dump())
        description = held.get("description") or held["name"]
        parameters: Row = {"type": "object", "properties": {}, **held["parameters"]}
        found.append({"type": "function", "name": held["name"], "description": description, "parameters": parameters})
    return found


def _tools_of(params: Row) -> list[Row]:
    return [{"type": "function", **tool["function"]} for tool in chat_tools(params)]


def _raise_error(state: Any) -> None:
    """The error that the environment set instead of raising it."""
    if state.get("error") is not None:
        raise state["error"]


def _no_model(where: str) -> Any:
    """The model that an episode's state must hold: it says nothing, since the turns are sampled elsewhere."""
    base = importlib.import_module("verifiers.clients").Client

    async def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise GymError("it asks the model itself", where=where, expected="turns that its caller samples")

    kind = type("NoModel", (base,), dict.fromkeys([*base.__abstractmethods__, "get_response"], refuse))
    return kind(None)

"""Reward functions of the user's own: any environment, judged by a function in a file.

In: `path/to/file.py:function`. The function, plain or async, takes a task's row and the episode's output items; one
that names a third parameter `verdict` gets the environment's own verdict too. It returns a number, or a mapping of
components, whose sum is the reward unless it holds `reward` itself. Out: the environment's class with that judge.
What the function raises, or returns that is no finite number, fails the episode; it is no reward of 0.
Refuses: a file or a function that is not there, a function with other parameters.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from regimen.errors import ConfigError, GymError
from regimen.gym.environment import Environment, Task, Verdict, module_of
from regimen.registry import did_you_mean

RewardFunction = Callable[..., Any]


def with_reward_function(kind: type[Environment], name: str) -> type[Environment]:
    """`kind`, judged by the function `name`."""
    function, file = load_function(name)
    asks_verdict = "verdict" in inspect.signature(function).parameters
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    class Judged(kind):
        judged_by = {**kind.judged_by, "reward_function": name, "reward_function_sha256": digest}

        async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
            own = await super().verify(session, task, output) if asks_verdict else Verdict(0.0)
            given = {"verdict": own} if asks_verdict else {}
            if inspect.iscoroutinefunction(function):
                value = await function(task.row, output, **given)
            else:  # in a thread, so that a slow one holds up no other episode
                value = await asyncio.to_thread(function, task.row, output, **given)
            reward, components = _read(value, name)
            return Verdict(reward, components, own.metrics)

    Judged.__name__ = Judged.__qualname__ = kind.__name__
    return Judged


def load_function(name: str) -> tuple[RewardFunction, Path]:
    """The function, and the file that it is in."""
    where = f"reward_function {name!r}"
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py") or not attribute.isidentifier():
        raise ConfigError("names no function", where=where, expected="path/to/file.py:function")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no file {path}", where=where)
    module = module_of(file)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f"{path} has no function {attribute!r}", where=where, fix=did_you_mean(attribute, known))
    try:
        signature = inspect.signature(function)
        extra = {"verdict": None} if "verdict" in signature.parameters else {}
        signature.bind({}, [], **extra)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            str(error), where=where, expected="a function of the task's row, the output items and perhaps `verdict`"
        ) from None
    return function, file


def _read(value: object, name: str) -> tuple[float, dict[str, float]]:
    """The reward and its components in what a function returned."""
    if not isinstance(value, Mapping):
        return _number(value, name), {}
    given = cast("Mapping[object, object]", value)
    numbers = {str(key): _number(item, f"{name}, component {key!r}") for key, item in given.items()}
    if not numbers:
        raise GymError("the reward function returned no component", where=name)
    components = {key: item for key, item in numbers.items() if key != "reward"}
    return numbers.get("reward", math.fsum(components.values())), components


def _number(value: object, where: str) -> float:
    try:
        number = float(cast("Any", value)) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise GymError(
            f"the reward function returned {str(value)[:80]!r}",
            where=where,
            expected="a finite number, or a mapping of them",
            fix="let it raise where it cannot judge: the episode is then failed, not wrong",
        )
    return number

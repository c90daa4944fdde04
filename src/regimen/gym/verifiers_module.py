"""Loading what a module of the package `verifiers` offers, and refusing what cannot be played turn by turn.

In: the name of an installed module, and the arguments of its `load_environment`. Out: the package's environment.
Refuses, with `ConfigError`: a missing package or one without these environments, modules and arguments that do not
load, environments that ask the model themselves, rubrics without rewards or over groups.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from regimen.errors import ConfigError
from regimen.registry import did_you_mean

INSTALL = "pip install 'regimen-rl[verifiers]'"


def check_package() -> None:
    """Refuse a missing package, and a version without environments that a module loads."""
    where = "environment 'verifiers'"
    if importlib.util.find_spec("verifiers") is None:
        raise ConfigError("the package verifiers is not installed", where=where, fix=INSTALL)
    try:
        importlib.import_module("verifiers.envs.multiturn_env")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"verifiers {package_version()} has no environments with load_environment ({error})",
            where=where,
            expected="a version from 0.1.14 to 0.3",
            fix=INSTALL,
        ) from error


def package_version() -> str:
    """The installed version, as text."""
    try:
        return version("verifiers")
    except PackageNotFoundError:
        return "of unknown version"


def loaded(module: str, arguments: dict[str, Any], where: str) -> Any:
    """What the module's `load_environment` gives. A hub's name is taken too: `owner/my-words` is `my_words`."""
    name = module.split("/")[-1].replace("-", "_")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError("names no module", where=where, expected="the option module, the name of an installed one")
    try:
        load = getattr(importlib.import_module(name), "load_environment", None)
    except Exception as error:  # the boundary to code of others
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"there is no module {error.name!r}", where=where, fix="install the environment's package"
            ) from error
        raise unusable(error, "it cannot be imported", where) from error
    if not callable(load):
        raise ConfigError("it has no load_environment", where=where, expected="a module with that function")
    _check_arguments(load, arguments, where)
    with _own_signals():
        try:
            return load(**arguments)
        except Exception as error:
            raise unusable(error, "load_environment failed", where) from error


def _check_arguments(load: Callable[..., Any], arguments: dict[str, Any], where: str) -> None:
    try:
        inspect.signature(load).bind(**arguments)
    except TypeError as error:
        known = list(inspect.signature(load).parameters)
        unknown = next((name for name in arguments if name not in known), None)
        raise ConfigError(
            f"load_environment takes other arguments ({error})",
            where=where,
            expected=", ".join(known) or "none",
            fix=did_you_mean(unknown, known) if unknown else None,
        ) from error


@contextlib.contextmanager
def _own_signals() -> Generator[None]:
    """Keep the handlers that are set: the package puts its own in their place, which exit."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def unusable(error: Exception, what: str, where: str) -> ConfigError:
    """Why a module cannot be used, from what its code raised."""
    if isinstance(error, KeyError) and error.args == ("question",):
        return ConfigError(
            "its data set has neither a prompt nor a question",
            where=where,
            expected="a column `prompt` of messages, or `question` of texts",
        )
    return ConfigError(f"{what} ({type(error).__name__}: {error})", where=where)


def check_environment(environment: Any, where: str) -> None:
    """Refuse an environment whose turns cannot be sampled by its caller, or that gives an episode no reward."""
    envs = importlib.import_module("verifiers.envs.multiturn_env")
    kind = cast("type[Any]", type(environment))
    if not isinstance(environment, envs.MultiTurnEnv):
        raise ConfigError(
            f"it is a {kind.__name__}, which plays by itself",
            where=where,
            expected="a SingleTurnEnv, MultiTurnEnv or ToolEnv",
            fix="load the members of a group one by one, in a mixture",
        )
    if kind.get_model_response is not envs.MultiTurnEnv.get_model_response:
        raise ConfigError(
            f"{kind.__name__} asks the model itself (get_model_response)",
            where=where,
            expected="an environment whose turns are sampled by its caller",
        )
    if environment.rubric.has_group_rewards:
        raise ConfigError(
            "its rubric has reward functions over a group of rollouts",
            where=where,
            expected="reward functions of one rollout each",
        )
    weights = [weight for rubric in leaves(environment.rubric) for weight in rubric.weights]
    if not environment.score_rollouts or not any(weights):
        raise ConfigError(
            "its rubric gives no reward", where=where, expected="score_rollouts, and a function with a weight"
        )


def leaves(rubric: Any) -> list[Any]:
    """The rubrics that hold functions: those of a group, or the rubric itself."""
    inner: Sequence[Any] | None = getattr(rubric, "rubrics", None)
    return [rubric] if inner is None else [leaf for one in inner for leaf in leaves(one)]

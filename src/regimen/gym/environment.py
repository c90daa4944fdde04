"""What an environment is: tasks, tools, a verifier. Subclass `Environment` to bring your own.

In: a name and options. Out: tasks as NeMo Gym task rows, tool results as text, verdicts.
Refuses: unknown environments and options, naming the nearest known one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec

from regimen.errors import ConfigError, GymError, RegimenError
from regimen.gym import environments
from regimen.registry import did_you_mean

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ENTRY_POINT_GROUP = "regimen.environments"
ENVIRONMENT_FILE = "environment.py"


class ToolError(GymError):
    """A tool refuses a call; the text is shown to the model as the tool's output."""


class Task(msgspec.Struct, frozen=True):
    """One task. `row` is a NeMo Gym task row: `responses_create_params` and the verifier's fields beside it."""

    index: int
    row: dict[str, Any]


class Verdict(msgspec.Struct, frozen=True):
    """What the verifier says. `metrics` become top-level fields of the rollout's row."""

    reward: float
    components: dict[str, float] = {}
    metrics: dict[str, float | str | bool | None] = {}


class Environment(ABC):
    """Tasks, the tools to work on them, and a verifier.

    Exceptions other than `ToolError` from `seed`, `call`, `observe`, `respond` and `verify` mark the episode as failed,
    not as wrong.
    One environment plays many episodes at once; what belongs to one episode lives in its session.
    """

    name: str = "environment"
    max_turns: int = 8
    # What changes verdicts and stands in no task row: a resumed collection must have the same.
    judged_by: Mapping[str, Any] = {}
    # Whether `respond` says what follows a turn, its tool calls included, in place of `call` and `observe`.
    answers_turns: bool = False

    def __init__(self, **options: Any) -> None:
        if options:
            raise ConfigError(f"environment {self.name!r} takes no option {sorted(options)[0]!r}")

    @abstractmethod
    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` tasks of `split` (None: all), the same at every call; splits share no task."""

    def playing(self, task: Task) -> Environment:  # noqa: ARG002
        """The environment whose tools and verifier the task's episode has: this one, unless it mixes others."""
        return self

    async def seed(self, task: Task) -> Any:  # noqa: ARG002
        """Begin an episode and return its session, which is handed to `call`, `observe`, `verify` and `close`."""
        return None

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:  # noqa: ARG002
        """Run the tool `name` and return its output; raises `ToolError` with a text for the model."""
        raise ToolError(f"Error: unknown tool '{name}'")

    async def observe(self, session: Any, output: list[dict[str, Any]]) -> str | None:  # noqa: ARG002
        """What the environment says to a turn that called no tool, as a user message; None: the episode is over.

        `output` holds the items so far, the turn included. Where observations are what the model acts on, the action
        is taken here.
        """
        return None

    async def respond(self, session: Any, output: list[dict[str, Any]]) -> list[dict[str, Any]] | None:  # noqa: ARG002
        """What follows a turn where `answers_turns`: chat messages of tools and user; None: the episode is over.

        `output` is as for `observe`. Agents play such an environment; over the wire, call by call, it is not served.
        """
        return None

    @abstractmethod
    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        """Judge an episode by its output, a list of Responses items."""

    def answer_fields(self, answer: str) -> dict[str, Any]:  # noqa: ARG002
        """The verifier's fields of a task that is a question with the right answer `answer`, as data sets have them.

        Raises `ConfigError` for an answer that this environment cannot judge by; the base takes no such tasks.
        """
        raise ConfigError(
            f"environment {self.name!r} does not judge question-and-answer rows",
            expected="an environment that does, like math or multiple_choice",
        )

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]] | None:  # noqa: ARG002
        """Play an episode perfectly and return its output items: what `regimen test environment` takes for right.

        Tools that it uses it calls with `call`, and turns that are actions it hands to `observe`, in `session`. None
        where no perfect player is written.
        """
        return None

    async def close(self, session: Any) -> None:  # noqa: B027
        """End an episode and free what its session holds. Called once per `seed` that returned."""


def load_environment(name: str, options: dict[str, Any] | None = None) -> Environment:
    """The environment `name`: a shipped one, an installed package's, a folder, or `path/to/file.py:ClassName`.

    A folder has the class in `environment.py`, alone. `mixture` mixes several, `verifiers` is one of that package (see
    `verifiers_api.py`). Every environment also takes the options `reward_function` (see `rewards.py`) and `mcp_servers`
    (see `mcp.py`).
    """
    given = dict(options or {})
    reward_function, servers = given.pop("reward_function", None), given.pop("mcp_servers", None)
    kind = _environment_class(name)
    _check_options(name, kind, given)
    if servers is not None:
        kind = importlib.import_module("regimen.gym.mcp").with_mcp_servers(kind, servers)
    if reward_function is not None:
        kind = importlib.import_module("regimen.gym.rewards").with_reward_function(kind, str(reward_function))
    try:
        return kind(**given)
    except RegimenError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(str(error), where=f"environment {name!r}", fix="check environment.options") from error


def shipped_environments() -> list[str]:
    """Names of the environments in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(environments.__path__) if module.ispkg)


def _environment_class(name: str) -> type[Environment]:
    if ".py" in name:
        return _class_in_file(name)
    if name == "mixture":
        return importlib.import_module("regimen.gym.mixture").Mixture
    if name == "verifiers":
        return importlib.import_module("regimen.gym.verifiers_api").VerifiersEnvironment
    if name in shipped_environments():
        module = importlib.import_module(f"{environments.__name__}.{name}")
        return _checked(module.ENVIRONMENT, name)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in installed:
        return _checked(installed[name].load(), name)
    if Path(name, ENVIRONMENT_FILE).is_file():
        return _class_in_folder(Path(name))
    known = sorted({*shipped_environments(), "mixture", "verifiers", *installed})
    raise ConfigError(
        f"unknown environment {name!r}",
        expected=f"one of {', '.join(known)}, a folder with {ENVIRONMENT_FILE}, or path/to/file.py:ClassName",
        fix=did_you_mean(name, known),
    )


def _class_in_file(name: str) -> type[Environment]:
    path, _, attribute = name.rpartition(":")
    if not path or not attribute.isidentifier():
        raise ConfigError(f"environment {name!r} names no class", expected="path/to/file.py:ClassName")
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no file {path}", where=f"environment {name!r}")
    module = module_of(file)
    if not hasattr(module, attribute):
        classes = [key for key, value in vars(module).items() if _is_environment(value)]
        raise ConfigError(f"{path} has no class {attribute!r}", fix=did_you_mean(attribute, classes))
    return _checked(getattr(module, attribute), name)


def _class_in_folder(folder: Path) -> type[Environment]:
    file = folder / ENVIRONMENT_FILE
    module = module_of(file)
    found = [value for value in vars(module).values() if _is_environment(value) and value.__module__ == module.__name__]
    if len(found) != 1:
        classes = ", ".join(kind.__name__ for kind in found) or "none"
        raise ConfigError(
            f"its environments are: {classes}",
            where=str(file),
            expected="one subclass of Environment",
            fix=f"name the class: {file}:ClassName",
        )
    return found[0]


def module_of(file: Path) -> ModuleType:
    """The module in `file`, executed."""
    spec = importlib.util.spec_from_file_location(f"regimen_environment_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError("not a Python file", where=str(file))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"not Python: {error.msg}", where=f"{file}:{error.lineno}") from error
    return module


def _is_environment(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Environment) and value is not Environment


def _checked(value: Any, name: str) -> type[Environment]:
    if not _is_environment(value):
        raise ConfigError(f"{value!r} is not an environment", where=name, expected="a subclass of Environment")
    return value


def _check_options(name: str, kind: type[Environment], options: dict[str, Any]) -> None:
    parameters = inspect.signature(kind).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise ConfigError(
                f"environment {name!r} has no option {option!r}",
                expected=f"one of {', '.join(parameters)}" if parameters else "no options",
                fix=did_you_mean(option, parameters),
            )

"""Several environments in one run, their tasks mixed by weight.

In: entries by name, each with `weight`, `environment` (which one it is, where its name does not say it) and the options
of that environment. Out: an environment whose tasks are drawn from the entries: of the first n tasks each entry has its
share by weight, to within one task, in an order that is the same whatever n. A row carries its entry's name, and that
entry plays and judges it.
Refuses: no entries, weights that are no positive numbers, more tasks than an entry has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec

from regimen.errors import ConfigError, GymError
from regimen.gym.environment import Environment, Split, Task, Verdict, load_environment

MIXTURE = "mixture"
# Names the entry in a task's row, beside `agent_ref`, where a collector that asks a served mixture writes its agent.
MEMBER = "_ng_mixture_environment"
Key = TypeVar("Key", bound=Hashable)


class Mixture(Environment):
    """The environments of `environments`, by name. A mixture holds no mixtures."""

    name = MIXTURE

    def __init__(
        self,
        *,
        environments: Mapping[str, Mapping[str, Any] | None] | None = None,
        members: Mapping[str, Environment] | None = None,
    ) -> None:
        """From entries, or from environments that are there already and weigh the same."""
        super().__init__()
        entries = {name: dict(given or {}) for name, given in _checked(environments).items()} if members is None else {}
        self.weights = {name: _weight(name, given.pop("weight", 1)) for name, given in entries.items()}
        self.members = dict(members or {name: load_entry(name, given) for name, given in entries.items()})
        self.weights = self.weights or dict.fromkeys(self.members, 1.0)
        self.max_turns = max(member.max_turns for member in self.members.values())
        self.answers_turns = any(member.answers_turns for member in self.members.values())
        self.judged_by = {name: member.judged_by for name, member in self.members.items() if member.judged_by}

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` of the mixture; None: until an entry whose turn it is has no more."""
        if num_tasks is None:
            return mixed([Drawn(m.tasks(split), self.weights[name], name) for name, m in self.members.items()])
        turns = Counter(islice(in_turn(self.weights), num_tasks))
        found: list[Drawn] = []
        for name, member in self.members.items():
            tasks = member.tasks(split, turns[name]) if turns[name] else []
            if len(tasks) < turns[name]:
                raise ConfigError(
                    f"{name!r} has {len(tasks)} {split} tasks, its share of {num_tasks} is {turns[name]}",
                    where="environment 'mixture'",
                    fix=f"ask for fewer tasks, or lower the weight of {name!r}",
                )
            found.append(Drawn(tasks, self.weights[name], name))
        return mixed(found)

    def playing(self, task: Task) -> Environment:
        """The entry that the task's row names."""
        name = str(task.row.get(MEMBER) or cast("dict[str, Any]", task.row.get("agent_ref") or {}).get("name"))
        if name not in self.members:
            raise GymError(
                f"the task's environment {name!r} is not in the mixture", expected=f"one of {', '.join(self.members)}"
            )
        return self.members[name]

    async def seed(self, task: Task) -> Any:
        """An episode of the task's own environment."""
        member = self.playing(task)
        return _Session(member, await member.seed(task))

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
        """A tool of that environment."""
        return await session.member.call(session.inner, name, arguments)

    async def observe(self, session: Any, output: list[dict[str, Any]]) -> str | None:
        """Its observation."""
        return await session.member.observe(session.inner, output)

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        """Its verdict."""
        return await session.member.verify(session.inner, task, output)

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]] | None:
        """Its perfect player."""
        return await session.member.solve(session.inner, task)

    async def close(self, session: Any) -> None:
        """Its end."""
        await session.member.close(session.inner)


class _Session(msgspec.Struct, frozen=True):
    member: Any
    inner: Any


class Drawn(msgspec.Struct, frozen=True):
    """Tasks to draw from, their weight, and the name their rows shall carry; None: the one that they have."""

    tasks: Sequence[Task]
    weight: float
    name: str | None


def load_entry(name: str, settings: Mapping[str, Any]) -> Environment:
    """The environment of an entry; its key `environment` says which it is, where the entry's name does not."""
    options = dict(settings)
    other = options.pop("environment", None)
    environment = load_environment(name if other is None else str(other), options)
    if other is not None:
        environment.name = name
    return environment


def in_turn(weights: Mapping[Key, float]) -> Iterator[Key]:
    """Keys without end: next comes the one that is furthest behind its share; the first one wins a tie."""
    total, drawn = math.fsum(weights.values()), dict.fromkeys(weights, 0)
    number = 0
    while True:
        number += 1
        behind = {name: number * weight / total - drawn[name] for name, weight in weights.items()}
        name = max(behind, key=lambda key: round(behind[key], 9))
        drawn[name] += 1
        yield name


def mixed(sources: Sequence[Drawn]) -> list[Task]:
    """Tasks of several sources in turn by weight, until one whose turn it is has no more; numbered anew."""
    left = [iter(source.tasks) for source in sources]
    result: list[Task] = []
    for number in in_turn({number: source.weight for number, source in enumerate(sources)}):
        task, name = next(left[number], None), sources[number].name
        if task is None:
            break
        row = task.row if name is None else {**task.row, "agent_ref": {"name": name}, MEMBER: name}
        result.append(Task(len(result), row))
    return result


def _checked(environments: object) -> Mapping[str, Mapping[str, Any] | None]:
    entries: Mapping[object, object] = {}
    if isinstance(environments, Mapping):
        entries = cast("Mapping[object, object]", environments)
    if not entries or not all(
        isinstance(name, str) and (options is None or isinstance(options, Mapping)) for name, options in entries.items()
    ):
        raise ConfigError(
            f"environments is {str(cast('object', environments))[:80]}",
            where="environment 'mixture'",
            expected="names with their options, as in {math: {weight: 2}, calculator: {}}",
        )
    checked = cast("Mapping[str, Mapping[str, Any] | None]", entries)
    for name, options in checked.items():
        if (options or {}).get("environment", name) == MIXTURE:
            raise ConfigError("a mixture holds no mixture", where=f"environment {name!r}", fix="name its entries here")
    return checked


def _weight(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"weight is {value!r}", where=f"environment {name!r}", expected="a number above 0")
    return float(value)

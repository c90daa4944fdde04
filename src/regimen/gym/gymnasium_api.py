"""Anything with the Gymnasium API as an environment: `reset(seed)` begins an episode, `step(action)` goes on.

In: a world, a text for its observations, a reader of actions. Out: an environment whose prompt ends with the first
observation; every answer of the model is an action, every further observation a user message; the reward is the sum of
the steps' rewards. Nothing of the package gymnasium is imported: what has the two methods will do.
Refuses: to make tasks of worlds that all begin alike, unless tasks are told apart by their seeds.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Protocol

from regimen.errors import ConfigError
from regimen.gym.answers import final_text, without_thinking
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.generated import first_tasks, split_of

MAX_ATTEMPTS = 2000
_FIRST_SEED: dict[Split, int] = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}


class World(Protocol):
    """What is used of the Gymnasium API."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: its first observation, and information."""
        ...

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act: observation, reward, terminated, truncated, information."""
        ...

    def close(self) -> None:
        """Free what the world holds."""
        ...


class Played:
    """The session of an episode: the world and what happened in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rewards: list[float] = []
        self.num_mistakes = 0
        self.is_terminated = False
        self.is_truncated = False

    @property
    def is_over(self) -> bool:
        """Whether the world takes no further action."""
        return self.is_terminated or self.is_truncated


class GymnasiumEnvironment(Environment):
    """Subclass it with `make`, `describe` and `parse`; see docs/environments.md.

    `rules` begin the prompt. With `tasks_are` "first observations" a task is what its prompt shows: none comes twice,
    and a split is a share of them by hash. With "seeds" every seed is a task, for worlds that begin alike. After
    `max_mistakes` answers without an action the episode is over.
    """

    rules: str = ""
    tasks_are: Literal["first observations", "seeds"] = "first observations"
    num_tasks: ClassVar[dict[Split, int]] = {"train": 400, "validation": 120, "test": 200}
    max_mistakes: int = 3
    mistake: str = "That is no action."

    @abstractmethod
    def make(self) -> World:
        """A new world, as `gymnasium.make` returns."""

    @abstractmethod
    def describe(self, observation: Any, info: dict[str, Any]) -> str:
        """An observation as text."""

    @abstractmethod
    def parse(self, text: str) -> Any | None:
        """The action in an answer; None where it names none, or more than one."""

    def score(self, played: Played) -> float:
        """The reward of an episode."""
        return sum(played.rewards)

    def components(self, played: Played) -> dict[str, float]:  # noqa: ARG002
        """The parts of the reward, where it has any."""
        return {}

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` beginnings of `split`."""
        return first_tasks(split, num_tasks, self.num_tasks, self._rows)

    def _rows(self, split: Split, count: int) -> list[dict[str, Any]]:
        world = self.make()
        try:
            beginnings = self._beginnings(world, split)
            return [self._row(*next(beginnings), split) for _ in range(count)]
        finally:
            world.close()

    def _beginnings(self, world: World, split: Split) -> Iterator[tuple[int, str]]:
        """Seeds with the text of their first observation, without end."""
        by_seed = self.tasks_are == "seeds"
        seed, since_last = (_FIRST_SEED[split] if by_seed else 0), 0
        seen: set[str] = set()
        while since_last < MAX_ATTEMPTS:
            text = self.describe(*world.reset(seed=seed))
            since_last += 1
            if by_seed or (text not in seen and split_of(self.name, text) == split):
                seen.add(text)
                since_last = 0
                yield seed, text
            seed += 1
        raise ConfigError(
            f"{MAX_ATTEMPTS} further seeds begin no new {split} task",
            where=f"environment {self.name!r}",
            fix="ask for fewer tasks, or set tasks_are to 'seeds' in its class",
        )

    def _row(self, seed: int, text: str, split: Split) -> dict[str, Any]:
        content = f"{self.rules}\n\n{text}" if self.rules else text
        prompt = [{"type": "message", "role": "user", "content": content}]
        return {
            "responses_create_params": {"input": prompt},
            "seed": seed,
            "split": split,
            "agent_ref": {"name": self.name},
        }

    async def seed(self, task: Task) -> Played:
        """A world of its own, at the beginning that the task shows."""
        world = self.make()
        await asyncio.to_thread(world.reset, seed=int(task.row["seed"]))
        return Played(world)

    async def observe(self, session: Played, output: list[dict[str, Any]]) -> str | None:
        """Take the action of the last turn."""
        if session.is_over:
            return None
        action = self.parse(without_thinking(final_text(output) or ""))
        if action is None:
            session.num_mistakes += 1
            session.is_truncated = session.num_mistakes >= self.max_mistakes
            return None if session.is_over else self.mistake
        observation, reward, terminated, truncated, info = await asyncio.to_thread(session.world.step, action)
        session.rewards.append(float(reward))
        session.is_terminated, session.is_truncated = bool(terminated), bool(truncated)
        return None if session.is_over else self.describe(observation, info)

    async def verify(self, session: Played, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """What was reached in the world, whatever the output says."""
        metrics: dict[str, float | str | bool | None] = {
            "num_steps": len(session.rewards),
            "num_mistakes": session.num_mistakes,
            "terminated": session.is_terminated,
            "truncated": session.is_truncated,
            "split": task.row.get("split"),
        }
        return Verdict(self.score(session), self.components(session), metrics)

    async def close(self, session: Played) -> None:
        """Close the world."""
        await asyncio.to_thread(session.world.close)

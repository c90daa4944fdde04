"""Worlds with the Gymnasium API as environments: one written here, and real ones of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from regimen.errors import ConfigError
from regimen.gym.conformance import message
from regimen.gym.environment import SPLITS, load_environment
from regimen.gym.gymnasium_api import GymnasiumEnvironment

BLACKJACK = Path(__file__).parents[3] / "examples" / "gymnasium_blackjack.py"


class Countdown:
    """Counts from the seed down by the action; 2 points for each step, over at 0, cut after 3 steps."""

    num_closed = 0

    def reset(self, *, seed: int | None = None) -> tuple[int, dict[str, Any]]:
        self.left, self.steps = (seed or 0) % 50, 0
        return self.left, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if action == 13:
            raise RuntimeError("unlucky")
        self.left, self.steps = self.left - action, self.steps + 1
        return self.left, 2, self.left <= 0, self.steps >= 3, {"said": "tick"}

    def close(self) -> None:
        type(self).num_closed += 1


class Counting(GymnasiumEnvironment):
    name = "countdown"
    rules = "Count down."
    num_tasks = {"train": 10, "validation": 3, "test": 4}

    def make(self) -> Countdown:
        return Countdown()

    def describe(self, observation: Any, info: dict[str, Any]) -> str:
        return f"{observation} left {info.get('said', '')}".strip()

    def parse(self, text: str) -> int | None:
        return int(text) if text.isdigit() else None


async def steps(environment: GymnasiumEnvironment, texts: list[str], seed: int = 7) -> tuple[list[str | None], Any]:
    """What the environment says to each text, and the verdict."""
    task = environment.tasks("train", 1)[0]
    task = type(task)(0, {**task.row, "seed": seed})
    session = await environment.seed(task)
    said = [await environment.observe(session, [message(text)]) for text in texts]
    verdict = await environment.verify(session, task, [])
    await environment.close(session)
    return said, verdict


async def test_steps_are_observed_and_their_rewards_add_up() -> None:
    said, verdict = await steps(Counting(), ["3", "4", "1"])
    assert said == ["4 left tick", None, None]  # terminated at 0; what comes later is not played
    assert verdict.reward == 4.0
    assert verdict.metrics == {
        "num_steps": 2, "num_mistakes": 0, "terminated": True, "truncated": False, "split": "train",
    }  # fmt: skip


async def test_a_cut_episode_is_truncated_and_a_mistake_costs_no_step() -> None:
    said, verdict = await steps(Counting(), ["1", "one", "1", "<think>1</think>1"])
    assert said == ["6 left tick", "That is no action.", "5 left tick", None]
    assert (verdict.metrics["num_steps"], verdict.metrics["truncated"], verdict.metrics["num_mistakes"]) == (3, True, 1)


async def test_mistakes_end_the_episode() -> None:
    said, verdict = await steps(Counting(), ["a", "b", "c", "7"])
    assert said == ["That is no action."] * 2 + [None, None]
    assert (verdict.reward, verdict.metrics["num_steps"], verdict.metrics["truncated"]) == (0.0, 0, True)


async def test_a_world_that_fails_fails_the_episode_and_is_closed() -> None:
    environment = Counting()
    session = await environment.seed(environment.tasks("train", 1)[0])
    with pytest.raises(RuntimeError, match="unlucky"):
        await environment.observe(session, [message("13")])
    before = Countdown.num_closed
    await environment.close(session)
    assert Countdown.num_closed == before + 1


def test_tasks_are_first_observations_once_each() -> None:
    environment = Counting()
    prompts = {
        split: [task.row["responses_create_params"]["input"][0]["content"] for task in environment.tasks(split)]
        for split in SPLITS
    }
    assert [len(found) for found in prompts.values()] == [10, 3, 4]
    everything = [prompt for found in prompts.values() for prompt in found]
    assert len(set(everything)) == 17
    assert all(prompt.startswith("Count down.\n\n") and prompt.endswith(" left") for prompt in everything)
    with pytest.raises(ConfigError, match=r"begin no new train task.*tasks_are to 'seeds'"):
        environment.tasks("train", 51)  # there are 50 beginnings in all


def test_tasks_as_seeds_are_of_ranges_that_never_meet() -> None:
    class Seeds(Counting):
        tasks_are = "seeds"

    seeds = {split: {task.row["seed"] for task in Seeds().tasks(split, 300)} for split in SPLITS}
    assert [len(found) for found in seeds.values()] == [300, 300, 300]
    assert len(set.union(*seeds.values())) == 900


def test_gymnasium_is_not_imported() -> None:
    program = "import sys, regimen.gym.environments.gridworld; print('gymnasium' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


async def test_blackjack_of_the_package() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    environment: Any = load_environment(f"{BLACKJACK}:Blackjack")
    assert len(environment.tasks("test")) == 200
    for task in environment.tasks("train", 20):
        # the same hand played by hand
        world = gymnasium.make("Blackjack-v1")
        observation, _ = world.reset(seed=task.row["seed"])
        prompt = task.row["responses_create_params"]["input"][0]["content"]
        assert prompt.endswith(environment.describe(observation, {}))
        _, reward, over, _, _ = world.step(0)
        assert over
        session = await environment.seed(task)
        assert await environment.observe(session, [message("<action>stick</action>")]) is None
        assert (await environment.verify(session, task, [])).reward == reward
        await environment.close(session)
        world.close()


async def test_a_walk_over_the_frozen_lake() -> None:
    gymnasium = pytest.importorskip("gymnasium")

    class Lake(GymnasiumEnvironment):
        name = "lake"
        tasks_are = "seeds"

        def make(self) -> Any:
            return gymnasium.make("FrozenLake-v1", is_slippery=False)

        def describe(self, observation: Any, info: dict[str, Any]) -> str:
            return f"place {int(observation)}"

        def parse(self, text: str) -> int | None:
            moves = {"left": 0, "down": 1, "right": 2, "up": 3}
            return moves.get(text)

    # the map of the package is SFFF FHFH FFFH HFFG: this way keeps to the ice
    way = ["down", "down", "right", "right", "down", "right"]
    said, verdict = await steps(Lake(), way)
    assert said == ["place 4", "place 8", "place 9", "place 10", "place 14", None]
    assert verdict.reward == 1.0

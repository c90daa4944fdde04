"""The grids: each has a way, the way scores, and nothing else does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from prompts import asked

from regimen.errors import ConfigError
from regimen.gym.conformance import judge, message
from regimen.gym.environment import SPLITS, Task
from regimen.gym.environments.gridworld import Gridworld
from regimen.gym.environments.gridworld.world import MOVES, Grid
from regimen.gym.protocol import observation_item

ENVIRONMENT = Gridworld()
TASKS = [task for split in SPLITS for task in ENVIRONMENT.tasks(split)]


def drawn(*lines: str, max_moves: int = 10) -> Grid:
    """A grid from a picture."""
    grid = Grid(2, 5)
    grid.cells = [list(line.replace("@", ".")) for line in lines]
    grid.player = next((r, c) for r, line in enumerate(lines) for c, kind in enumerate(line) if kind == "@")
    grid.max_moves = max_moves
    return grid


async def played(task: Task, answers: list[str]) -> Any:
    async def play(session: Any) -> Any:
        output: list[dict[str, Any]] = []
        for answer in answers:
            output.append(message(answer))
            said = await ENVIRONMENT.observe(session, output)
            output += [] if said is None else [observation_item(said)]
        return output

    return await judge(ENVIRONMENT, task, play)


def test_there_are_hundreds_and_none_twice() -> None:
    assert Counter(task.row["split"] for task in TASKS) == {"train": 400, "validation": 120, "test": 200}
    assert len({asked(task) for task in TASKS}) == len(TASKS)


def test_the_map_of_the_prompt_is_the_one_that_is_played() -> None:
    for task in TASKS:
        grid = ENVIRONMENT.make()
        text, info = grid.reset(seed=task.row["seed"])
        assert asked(task).endswith(f"{text}\nMoves left: {info['moves_left']}.")
        assert Counter(text)["@"] == Counter(text)["G"] == 1


def test_moves_walls_water_and_the_goal() -> None:
    grid = drawn("@#G", "..~")
    assert grid.step("right") == ("@#G\n..~", 0.0, False, False, {"said": "A wall is in the way.", "moves_left": 9})
    assert grid.step("up")[0] == "@#G\n..~"
    assert grid.step("down")[0] == ".#G\n@.~"
    assert grid.step("right")[0] == ".#G\n.@~"
    assert grid.step("right")[1:4] == (0.0, True, False)
    assert drawn("@G").step("right")[1:4] == (1.0, True, False)
    assert drawn("@G", max_moves=1).step("right")[1:4] == (1.0, True, False)
    assert drawn("@.G", max_moves=1).step("right")[1:4] == (0.0, False, True)


def test_the_way_is_shortest_and_dry() -> None:
    assert drawn("@~G", "...").way() == ["down", "right", "right", "up"]
    assert drawn("@..", ".#.", "..G").way() in (["down", "down", "right", "right"], ["right", "right", "down", "down"])
    assert drawn("@#G", ".~.").way() is None


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("<action>up</action>", "up"),
        ("I go <ACTION> Left </ACTION> now", "left"),
        ("<action>up</action> <action>up</action>", "up"),
        ("down", "down"),
        ("Right.", "right"),
        ("<action>up</action><action>down</action>", None),
        ("<action>up</action><action>jump</action>", None),
        ("up down left right", None),
        ("I would go up or maybe left.", None),
        ("", None),
    ],
)
def test_actions(text: str, move: str | None) -> None:
    assert ENVIRONMENT.parse(text) == move


async def test_the_shortest_way_scores_1_on_all_tasks() -> None:
    for task in TASKS:
        verdict = await judge(ENVIRONMENT, task, lambda session, task=task: ENVIRONMENT.solve(session, task))
        assert verdict is not None
        assert (verdict.reward, verdict.components) == (1.0, {"goal": 1.0, "directness": 1.0}), task.row


ADVERSARIES: dict[str, list[str]] = {
    "nothing": [],
    "silence": [""] * 5,
    "every move at once": ["<action>up</action><action>down</action><action>left</action><action>right</action>"] * 5,
    "claims": ["I have reached G.", "<action>G</action>", "<observation>You reached the goal</observation>"],
    "thoughts alone": ["<think><action>up</action></think>"] * 5,
    "one move": ["<action>up</action>"],
    "to and fro": ["<action>up</action>", "<action>down</action>"] * 20,
    "three mistakes, then moves": ["?"] * 3 + [f"<action>{move}</action>" for move in MOVES] * 9,
}


@pytest.mark.parametrize("name", ADVERSARIES)
async def test_adversaries_score_0_on_all_tasks(name: str) -> None:
    for task in TASKS:
        steps = ADVERSARIES[name]
        if name == "to and fro" and is_beside_goal_line(task):
            continue
        assert (await played(task, steps)).reward == 0.0, task.row


def is_beside_goal_line(task: Task) -> bool:
    """Whether walking up and down may pass the goal: it is in the player's column."""
    lines = asked(task).splitlines()
    columns = {kind: line.index(kind) for line in lines[3:-1] for kind in "@G" if kind in line}
    return columns["@"] == columns["G"]


async def test_the_way_of_another_output_does_not_count() -> None:
    """The verdict is on what was walked, not on what the output says."""
    task = TASKS[0]
    session = await ENVIRONMENT.seed(task)
    output = await ENVIRONMENT.solve(session, task)
    assert (await ENVIRONMENT.verify(await ENVIRONMENT.seed(task), task, output)).reward == 0.0


async def test_a_detour_reaches_the_goal_less_directly() -> None:
    task = next(task for task in TASKS if len(way_of(task)) == 2)
    back = {"up": "down", "down": "up", "left": "right", "right": "left"}
    first, second = way_of(task)
    verdict = await played(task, [first, back[first], first, second])
    assert verdict.components == {"goal": 1.0, "directness": 0.5}


def way_of(task: Task) -> list[str]:
    grid = ENVIRONMENT.make()
    grid.reset(seed=task.row["seed"])
    return grid.way() or []


@pytest.mark.parametrize(
    "options", [{"min_size": 1}, {"max_size": 9}, {"min_size": 5, "max_size": 4}, {"min_size": "3"}]
)
def test_sizes_are_bounded(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="2 <= min_size <= max_size <= 8"):
        Gridworld(**options)

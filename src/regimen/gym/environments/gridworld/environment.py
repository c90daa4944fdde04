"""The gridworld environment: the model walks to a goal, one move an answer; the map comes back as a user message."""

from __future__ import annotations

import re
from typing import Any

from regimen.errors import ConfigError
from regimen.gym.conformance import message
from regimen.gym.environment import Task
from regimen.gym.environments.gridworld.world import MOVES, Grid
from regimen.gym.gymnasium_api import GymnasiumEnvironment, Played
from regimen.gym.protocol import observation_item

LARGEST = 8
_ACTION = re.compile(r"<action>\s*([a-z]{1,10})\s*</action>", re.IGNORECASE)

RULES = """\
You are @ on this map. Walk to G. # is a wall. ~ is water: whoever steps into it has lost.
Answer with one move: up, down, left or right, written between <action> and </action>."""


class Gridworld(GymnasiumEnvironment):
    """Walk through a grid.

    Options: `min_size` and `max_size`, the bounds of the number of rows and columns. Splits are the same for all.
    """

    name = "gridworld"
    rules = RULES
    mistake = "That is no move. Answer with up, down, left or right between <action> and </action>."

    def __init__(self, *, min_size: int = 3, max_size: int = 5) -> None:
        super().__init__()
        if type(min_size) is not int or type(max_size) is not int or not 2 <= min_size <= max_size <= LARGEST:
            raise ConfigError(
                f"min_size is {min_size!r} and max_size {max_size!r}",
                where="environment 'gridworld'",
                expected=f"2 <= min_size <= max_size <= {LARGEST}",
            )
        self.min_size = min_size
        self.max_size = max_size
        # The longest way takes half of the places, two moves may be spent for each of it, and two more.
        self.max_turns = max_size * max_size + 2 + self.max_mistakes

    def make(self) -> Grid:
        """A grid without an episode."""
        return Grid(self.min_size, self.max_size)

    def describe(self, observation: Any, info: dict[str, Any]) -> str:
        """What came of the move, the map, the moves that are left."""
        lines = [info["said"], observation, f"Moves left: {info['moves_left']}."]
        return "\n".join(line for line in lines if line)

    def parse(self, text: str) -> str | None:
        """The one move between tags, or the move that is the whole answer."""
        named = {found.lower() for found in _ACTION.findall(text)}
        if not named and len(text) <= 20:
            named = {text.strip(" .!\n").lower()}
        return named.pop() if len(named) == 1 and named <= MOVES.keys() else None

    def components(self, played: Played) -> dict[str, float]:
        """Whether the goal was reached, and how directly."""
        grid = played.world
        assert isinstance(grid, Grid)
        reached = self.score(played)
        return {"goal": reached, "directness": reached * grid.shortest / max(1, grid.num_moves)}

    async def solve(self, session: Played, task: Task) -> list[dict[str, Any]]:  # noqa: ARG002
        """Walk a shortest way."""
        grid = session.world
        assert isinstance(grid, Grid)
        output: list[dict[str, Any]] = []
        for move in grid.way() or []:
            output.append(message(f"<action>{move}</action>"))
            said = await self.observe(session, output)
            if said is not None:
                output.append(observation_item(said))
        return output

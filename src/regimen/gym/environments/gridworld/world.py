"""A grid with walls and water, a player and a goal, with the methods of the Gymnasium API.

In: a seed, then moves. Out: the map as text, a reward of 1 at the goal. The same seed gives the same grid; every grid
has a way, of two moves or more and not longer than half of the largest grid's places. Water and too many moves end the
episode without a reward.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

Place = tuple[int, int]
MOVES: dict[str, Place] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
FLOOR, WALL, WATER, GOAL, PLAYER = ".", "#", "~", "G", "@"


class Grid:
    """See the module. `min_size` and `max_size` bound the number of rows and of columns."""

    def __init__(self, min_size: int, max_size: int) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.longest = max_size * max_size // 2
        self.cells: list[list[str]] = []
        self.player: Place = (0, 0)
        self.num_moves = 0
        self.shortest = 0
        self.max_moves = 0

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """A new grid, the player in its place."""
        generator = random.Random(f"gridworld/{seed}")
        way: list[str] | None = None
        while way is None or not 2 <= len(way) <= self.longest:
            self._scatter(generator)
            way = self.way()
        self.num_moves = 0
        self.shortest = len(way)
        self.max_moves = 2 * len(way) + 2
        return self.drawn(), {"said": "", "moves_left": self.max_moves}

    def _scatter(self, generator: random.Random) -> None:
        height, width = (generator.randint(self.min_size, self.max_size) for _ in range(2))
        kinds: list[str] = generator.choices((FLOOR, WALL, WATER), weights=(70, 20, 10), k=height * width)
        self.cells = [kinds[row * width : (row + 1) * width] for row in range(height)]
        start, goal = generator.sample([(row, column) for row in range(height) for column in range(width)], 2)
        self.player = start
        self.cells[start[0]][start[1]] = FLOOR
        self.cells[goal[0]][goal[1]] = GOAL

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move; a wall or the edge of the grid lets the player stand."""
        place = _next(self.player, action)
        self.num_moves += 1
        kind = self._kind(place)
        if kind != WALL:
            self.player = place
        reached, drowned = kind == GOAL, kind == WATER
        said = "A wall is in the way." if kind == WALL else f"You moved {action}."
        info = {"said": said, "moves_left": self.max_moves - self.num_moves}
        is_late = self.num_moves >= self.max_moves and not (reached or drowned)
        return self.drawn(), float(reached), reached or drowned, is_late, info

    def close(self) -> None:
        """Nothing is held."""

    def drawn(self) -> str:
        """The map, a line a row."""
        lines = [list(row) for row in self.cells]
        lines[self.player[0]][self.player[1]] = PLAYER
        return "\n".join("".join(line) for line in lines)

    def way(self) -> list[str] | None:
        """A shortest way from the player to the goal, None where there is none."""
        ways: dict[Place, list[str]] = {self.player: []}
        waiting = deque([self.player])
        while waiting:
            place = waiting.popleft()
            if self._kind(place) == GOAL:
                return ways[place]
            for move in MOVES:
                after = _next(place, move)
                if after not in ways and self._kind(after) in (FLOOR, GOAL):
                    ways[after] = [*ways[place], move]
                    waiting.append(after)
        return None

    def _kind(self, place: Place) -> str:
        """What stands in a place; around the grid is wall."""
        row, column = place
        inside = 0 <= row < len(self.cells) and 0 <= column < len(self.cells[0])
        return self.cells[row][column] if inside else WALL


def _next(place: Place, move: str) -> Place:
    return place[0] + MOVES[move][0], place[1] + MOVES[move][1]

"""The gridworld environment: a way through a grid, one move a turn."""

from __future__ import annotations

from regimen.gym.environments.gridworld.environment import Gridworld

ENVIRONMENT = Gridworld

__all__ = ["ENVIRONMENT", "Gridworld"]

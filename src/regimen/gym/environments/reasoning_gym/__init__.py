"""Generated reasoning puzzles of the `reasoning-gym` package, one answer each, scored by the package."""

from __future__ import annotations

from regimen.gym.environments.reasoning_gym.environment import ReasoningGym

ENVIRONMENT = ReasoningGym

__all__ = ["ENVIRONMENT", "ReasoningGym"]

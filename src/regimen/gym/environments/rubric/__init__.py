"""The rubric environment: a model judges an answer by weighted criteria."""

from __future__ import annotations

from regimen.gym.environments.rubric.environment import Rubric

ENVIRONMENT = Rubric

__all__ = ["ENVIRONMENT", "Rubric"]

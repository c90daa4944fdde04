"""The math environment: a question, an answer in a box, judged by the library math-verify."""

from __future__ import annotations

from regimen.gym.environments.math.environment import Math

ENVIRONMENT = Math

__all__ = ["ENVIRONMENT", "Math"]

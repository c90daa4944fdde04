"""The instructions environment: texts that follow one to three instructions, each checked by a rule."""

from __future__ import annotations

from regimen.gym.environments.instructions.environment import Instructions

ENVIRONMENT = Instructions

__all__ = ["ENVIRONMENT", "Instructions"]

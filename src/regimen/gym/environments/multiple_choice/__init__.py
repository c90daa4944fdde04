"""The multiple choice environment: a question, lettered options, one right letter."""

from __future__ import annotations

from regimen.gym.environments.multiple_choice.environment import MultipleChoice

ENVIRONMENT = MultipleChoice

__all__ = ["ENVIRONMENT", "MultipleChoice"]

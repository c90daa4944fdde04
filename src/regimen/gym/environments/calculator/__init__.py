"""The calculator environment: "What is 47 × 23?" with one tool, `calculator(expression)`."""

from __future__ import annotations

from regimen.gym.environments.calculator.environment import Calculator

ENVIRONMENT = Calculator

__all__ = ["ENVIRONMENT", "Calculator"]

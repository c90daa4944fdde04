"""The code environment: write a function; hidden tests call it in a sandbox."""

from __future__ import annotations

from regimen.gym.environments.code.environment import Code

ENVIRONMENT = Code

__all__ = ["ENVIRONMENT", "Code"]

"""The office environment: mail, calendar and tasks in a database of the session, judged by its final state."""

from __future__ import annotations

from regimen.gym.environments.office.environment import Office

ENVIRONMENT = Office

__all__ = ["ENVIRONMENT", "Office"]

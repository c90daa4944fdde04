"""The tool_choice environment: which tools a request needs, with which arguments, or that none will do."""

from __future__ import annotations

from regimen.gym.environments.tool_choice.environment import ToolChoice

ENVIRONMENT = ToolChoice

__all__ = ["ENVIRONMENT", "ToolChoice"]

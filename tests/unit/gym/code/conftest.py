"""A sandbox, where this machine can make one."""

from __future__ import annotations

import pytest

from regimen.errors import ConfigError
from regimen.gym.environments.code import Code
from regimen.gym.environments.code.sandbox import Sandbox, SandboxLimits


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """Little processor time; on a machine that is busy it takes a while to be spent."""
    try:
        return Sandbox(2, SandboxLimits(cpu_seconds=1, wall_seconds=120.0))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def environment(sandbox: Sandbox) -> Code:
    return Code(num_workers=2, seconds=2)

from pathlib import Path

import pytest


@pytest.fixture
def data() -> Path:
    """Small files in the shapes that collectors and people write."""
    return Path(__file__).parents[2] / "fixtures" / "rollouts"

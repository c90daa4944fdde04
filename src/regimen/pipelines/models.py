"""Names of models: a folder, a hub name, or the small model that the quickstart installs.

Refuses a path that holds no model, before a hub is asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regimen.errors import UsageError
from regimen.pipelines.small_model import NAME, small_model


def resolve_model(name: str) -> str:
    """`name`, or the folder of the small model when its name is given. Raises `UsageError` for a path without one."""
    if name == NAME:
        return str(small_model())
    check_models([name])
    return name


def check_models(names: Sequence[str]) -> None:
    """Refuse paths that hold no model; names that are no path are left to the model hub."""
    for name in names:
        path = Path(name)
        looks_like_path = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
        if (path.exists() or looks_like_path) and not (path / "config.json").is_file():
            seen = "holds no config.json" if path.is_dir() else "is no folder" if path.exists() else "no such folder"
            raise UsageError(seen, where=name, expected="a Hugging Face model folder")

"""Names of models: a folder, a hub name, or the small model that the quickstart installs."""

from __future__ import annotations

from regimen.pipelines.small_model import NAME, small_model


def resolve_model(name: str) -> str:
    """`name`, or the folder of the small model when its name is given."""
    return str(small_model()) if name == NAME else name

"""`regimen version`: the versions a report of a problem needs, read from package metadata (nothing is imported)."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import typer

PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def version() -> None:
    """Print the versions of Regimen and of what it runs on."""
    from regimen import __version__

    typer.echo(f"regimen {__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in PACKAGES:
        typer.echo(f"{name} {_installed(name)}")


def _installed(name: str) -> str:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return "not installed"

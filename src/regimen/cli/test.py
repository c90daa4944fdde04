"""`regimen test environment`: the promises of an environment, checked one by one.

In: the name, folder or class of an environment. Out: a line per promise; exit code 1 when one is broken.
Refuses what is no environment.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from regimen.cli.init import check_kind
from regimen.errors import GymError
from regimen.gym.conformance import NUM_PLAYED, check_environment
from regimen.gym.environment import load_environment


def check(
    kind: Annotated[str, typer.Argument(metavar="environment", help="What to test.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Name, folder, or path/to/file.py:ClassName.", show_default=False)],
    num_tasks: Annotated[int, typer.Option(min=1, help="Tasks to play per split.")] = NUM_PLAYED,
) -> None:
    """Check that an environment keeps what environments promise."""
    check_kind(kind)
    checks = asyncio.run(check_environment(load_environment(name), num_tasks))
    for promise in checks:
        typer.echo(f"{'ok    ' if promise.problem is None else 'broken'}  {promise.promise}")
        if promise.problem is not None:
            typer.echo(f"        {promise.problem}")
    num_broken = sum(promise.problem is not None for promise in checks)
    if num_broken:
        raise GymError(f"{num_broken} of {len(checks)} promises are broken", where=name, fix="see the lines above")

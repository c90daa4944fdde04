"""`regimen quickstart`: the whole loop on this computer with a small model.

In: a folder to write. Out: every stage's files there, a table on the screen and report.html.
Refuses a folder in use, unless asked to replace it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regimen.cli.progress import shown_progress

DEFAULT_FOLDER = Path("runs/quickstart")


def quickstart(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")] = DEFAULT_FOLDER,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same path, shortened to a few minutes.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier run.")] = False,
) -> None:
    """Collect, inspect, convert, train and evaluate: a better model and its report."""
    from regimen.pipelines.quickstart import quickstart as run_quickstart

    with shown_progress() as report:
        result = run_quickstart(folder, smoke=smoke, overwrite=overwrite, progress=report)
    typer.echo(str(result))

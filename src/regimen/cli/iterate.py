"""`regimen iterate`: collect, convert, train and evaluate in rounds, from one configuration.

In: a configuration file or the name of a shipped one, and `key=value` overrides. Out: a folder with one folder a round,
and which model was kept. Refuses what the configuration's loader and the pipeline refuse.
"""

from __future__ import annotations

from typing import Annotated

import typer

from regimen.cli.progress import shown_progress
from regimen.cli.train import INTERRUPTED, print_notes


def iterate(
    config: Annotated[
        str, typer.Argument(help="Configuration file, or the name of a shipped one.", show_default=False)
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Values to set: rounds=3", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last finished stage.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier run.")] = False,
) -> None:
    """Run the loop in rounds; a model is kept only when it is better on validation tasks."""
    from regimen.config.load import load_iterate_config
    from regimen.pipelines.iterate import iterate as run_rounds

    flags = ["overwrite=true"] if overwrite else []
    loaded = load_iterate_config(config, [*(overrides or ()), *flags])
    print_notes(loaded.notes)
    with shown_progress() as report:
        result = run_rounds(loaded, resume=resume, progress=report)
    typer.echo(str(result))
    if result.stopped:
        raise typer.Exit(INTERRUPTED)

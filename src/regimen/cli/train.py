"""`regimen train`: SFT, DPO or GRPO from one configuration.

In: a configuration file or the name of a shipped one, and `key=value` overrides. Out: a run folder, and its summary.
With `policy.dtensor_cfg.enabled` it is many processes: those of torchrun, or those that this command
starts, here or in a Ray cluster.
Refuses what the configuration's loader and the pipeline refuse.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, cast

import typer

from regimen.cli.progress import shown_progress
from regimen.rank import is_first_process

INTERRUPTED = 130


def train(
    context: typer.Context,
    config: Annotated[
        str, typer.Argument(help="Configuration file, or the name of a shipped one.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to set: policy.optimizer.kwargs.lr=1e-5", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run folder's last checkpoint.")] = False,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed", help="Resume although data, model, tokenizer, template or configuration changed."
        ),
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Two runs equal bit for bit; slower (run.deterministic=true).")
    ] = False,
    stage_timeout: Annotated[
        float | None,
        typer.Option("--stage-timeout", help="Seconds without progress until the run is stopped (run.stage_timeout)."),
    ] = None,
    show_batch: Annotated[
        bool, typer.Option("--show-batch", help="Print the first batch (tokens, masks, weights) and stop.")
    ] = False,
) -> None:
    """Train a model by SFT, DPO or GRPO."""
    from regimen.config.load import load_train_config
    from regimen.pipelines.launch import launch, launch_on_ray, processes_to_start, starts_on_ray

    given = [*(overrides or ()), *(["run.deterministic=true"] if deterministic else [])]
    given += [] if stage_timeout is None else [f"run.stage_timeout={stage_timeout}"]
    loaded = load_train_config(config, given)
    is_first = is_first_process()
    if starts_on_ray(loaded):
        raise typer.Exit(launch_on_ray(cast("list[str]", context.obj), loaded))
    number = processes_to_start(loaded)
    if number > 1:
        raise typer.Exit(launch(cast("list[str]", context.obj), number))
    from regimen.pipelines.train import train as run_training

    if is_first:
        print_notes(loaded.notes)
    with contextlib.nullcontext() if is_first else _silence(), shown_progress() as report:
        result = run_training(
            loaded, resume=resume, allow_changed=allow_changed, show_batch=show_batch, progress=report
        )
    if not show_batch and is_first:
        typer.echo(str(result))
    if result.stopped:
        raise typer.Exit(INTERRUPTED)


@contextlib.contextmanager
def _silence() -> Generator[None]:
    """Standard output to nowhere: of many processes the first one alone prints."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def print_notes(notes: list[str]) -> None:
    """What the configuration's loader has to say, before the work begins."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)

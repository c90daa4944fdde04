"""`regimen merge`: LoRA adapters and their model become one ordinary model folder.

In: a folder of adapters, a checkpoint or a run folder. Out: a Hugging Face folder, and one line that says where.
Refuses what the pipeline refuses.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from regimen.pipelines.merge import merge as merge_adapters


class PrecisionChoice(StrEnum):
    """What the weights are written in."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def merge(
    adapters: Annotated[
        Path,
        typer.Argument(
            help="Folder of adapters: a checkpoint, the model folder of a run, or the run folder.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    base: Annotated[
        str | None,
        typer.Option(help="Model below the adapters. (default the one that they were trained on)", show_default=False),
    ] = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(help="What to write weights in. (default as the base)", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model's folder holds.")
    ] = False,
) -> None:
    """Merge LoRA adapters into their model: an ordinary model folder."""
    folder = merge_adapters(
        adapters,
        output,
        base=base,
        precision=None if precision is None else precision.value,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    typer.echo(f"merged model: {folder}")

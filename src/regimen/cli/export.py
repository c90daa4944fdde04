"""`regimen export`: a training configuration and its data, for another trainer.

In: a target, a configuration, `key=value` overrides. Out: the folder; every change as a line, and its files.
Refuses what the pipeline refuses.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from regimen.convert.export.manifest import ExportManifest
from regimen.errors import UsageError
from regimen.pipelines.export import export as export_config


class ExportChoice(StrEnum):
    """For whom to write."""

    nemo_rl = "nemo-rl"
    trl = "trl"


def export(
    target: Annotated[ExportChoice, typer.Argument(help="For whom to write: nemo-rl, trl.", show_default=False)],
    config: Annotated[
        str,
        typer.Argument(
            help="Training configuration (of Regimen, or of NeMo RL with keys old or new), or a shipped one's name.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to set: cluster.gpus_per_node=8", show_default=False)
    ] = None,
    nemo_rl: Annotated[
        Path | None,
        typer.Option(
            "--nemo-rl",
            help="A NeMo RL checkout whose example configuration to inherit. (default write all keys)",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an exported folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Write a training configuration and its data for another trainer: NeMo RL or TRL."""
    if nemo_rl is not None and target is not ExportChoice.nemo_rl:
        raise UsageError("--nemo-rl has a meaning for the target nemo-rl only", fix="leave it out")
    manifest = export_config(target.value, config, out, overrides or (), checkout=nemo_rl, overwrite=overwrite)
    if json:
        typer.echo(msgspec.json.encode(manifest).decode())
    else:
        print_export(manifest, out)


def print_export(manifest: ExportManifest, out: Path) -> None:
    """What was changed, and what was written."""
    for change in manifest.changes:
        typer.echo(f"changed: {change}")
    typer.echo(f"written to {out}, {manifest.algorithm} for {manifest.export}; README.md there says how to train:")
    for file in manifest.outputs:
        rows = f"{file.rows:,} rows" if file.rows else ""
        typer.echo(f"  {file.name:<34} {rows:>14} {file.size:>12,} bytes")

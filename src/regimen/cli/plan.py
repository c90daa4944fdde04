"""`regimen plan`: the memory, tokens and seconds that a training run will take.

In: a configuration file or the name of a shipped one, and `key=value` overrides. Out: figures on the screen, and what
to change where they do not fit, or one JSON document. With `policy.dtensor_cfg.enabled` it starts processes as
`regimen train` does, to measure them. Exit code 0 when it fits, 1 when not, 2 for misuse.
"""

from __future__ import annotations

from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from regimen.cli.findings import escape, sizes_text
from regimen.diagnosis.memory import GIGABYTE
from regimen.diagnosis.plan import Plan
from regimen.rank import is_first_process
from regimen.rollouts.writer import encode_row


def plan(
    context: typer.Context,
    config: Annotated[
        str, typer.Argument(help="Configuration file, or the name of a shipped one.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values to set: policy.train_micro_batch_tokens=4096", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Measure no time: no model is loaded.")] = False,
    device_memory: Annotated[
        float | None, typer.Option(min=0, help="Plan for GPUs with this many GB each, not for this machine.")
    ] = None,
) -> None:
    """Predict memory, tokens and time of a training run."""
    from regimen.config.load import load_train_config
    from regimen.pipelines.plan import plan as make_plan

    loaded = load_train_config(config, overrides or ())
    if not no_probe and device_memory is None:
        from regimen.pipelines.launch import launch, processes_to_start, starts_on_ray

        number = 1 if starts_on_ray(loaded) else processes_to_start(loaded)  # a cluster's machines are elsewhere
        if number > 1:
            raise typer.Exit(launch(cast("list[str]", context.obj), number))
    made = make_plan(loaded, with_probe=not no_probe, device_memory=device_memory)
    if is_first_process():
        if json:
            typer.echo(encode_row(made).decode(), nl=False)
        else:
            print_plan(made, Console(highlight=False))
    if made.fits is False:
        raise typer.Exit(1)


def print_plan(made: Plan, console: Console) -> None:
    """Figures, what to change, and the verdict in the last line."""
    table = Table(title=f"plan of {made.algorithm}", title_justify="left", show_header=False, title_style="bold")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(made):
        table.add_row(name, escape(text))
    console.print(table)
    for change in made.changes:
        verdict = "[green]fits[/green]" if change.fits else "not enough"
        console.print(f"{escape(' '.join(change.settings))}: {change.total / GIGABYTE:.2f} GB a process, {verdict}")
    console.print(_verdict(made))


def _lines(made: Plan) -> list[tuple[str, str]]:
    lines = [("steps", f"{made.total_steps:,}"), ("step", _step(made))]
    if made.memory is not None:
        of_each = "" if made.processes == 1 else f" for each of {made.processes} processes"
        lines.append(
            ("memory", f"{made.memory.total / GIGABYTE:.2f} GB{of_each}, in the phase {made.memory.peak_phase}")
        )
        lines.append(("parts", f"{sizes_text(made.memory.parts)}; {made.memory.parameters:,} parameters"))
        lines.append(("phases", sizes_text(made.memory.phases)))
    there = f"{made.machine.available / GIGABYTE:.2f} GB of {made.machine.total / GIGABYTE:.2f} GB"
    lines.append((made.machine.kind, f"{there} available{' to each process' if made.machine.kind == 'GPU' else ''}"))
    if made.seconds_per_step is not None:
        lines.append(("time", _time(made, made.seconds_per_step)))
    return [*lines, *(("note", note) for note in made.notes)]


def _step(made: Plan) -> str:
    sequences = f"{made.sequences_per_step:,.0f} sequences, {made.tokens_per_step:,.0f} tokens to compute"
    batches = f"{made.micro_batches_per_step:,.1f} micro-batches, the largest of {made.largest_micro_batch:,} tokens"
    return f"{sequences} in {batches}"


def _time(made: Plan, seconds: float) -> str:
    parts = ", ".join(f"{name} {part:.1f}" for name, part in made.seconds.items())
    speed = f"{made.tokens_per_step / max(seconds, 1e-9):,.0f} tokens/s"
    return f"{seconds:.1f} s a step ({parts}), {speed}; {_duration(seconds * made.total_steps)} in all"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _verdict(made: Plan) -> str:
    if made.fits is None or made.needed is None:
        return "[bold]unknown[/bold] whether it fits"
    if made.fits:
        return f"[bold][green]fits[/green][/bold]: {made.needed / made.machine.available:.0%} of what is there"
    more = "" if any(change.fits for change in made.changes) else "; no setting is enough: a smaller model or more GPUs"
    return f"[bold][red]does not fit[/red][/bold]: {made.needed / made.machine.available:.0%} of what is there{more}"

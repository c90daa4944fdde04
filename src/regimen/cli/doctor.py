"""`regimen doctor`: what would go wrong in a training run, found before any GPU time.

In: a configuration file or the name of a shipped one, and `key=value` overrides. Out: figures and problems on the
screen, or one JSON document. Exit code 0 without errors, 1 with one, 2 for misuse.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from regimen.cli.findings import escape, print_findings, sizes_text
from regimen.diagnosis.batches import Schedule
from regimen.diagnosis.memory import GIGABYTE, MemoryEstimate
from regimen.pipelines.doctor import Checkup
from regimen.rollouts.writer import encode_row


def doctor(
    config: Annotated[
        str, typer.Argument(help="Configuration file, or the name of a shipped one.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values to set: data.train.data_path=train.jsonl", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    device_memory: Annotated[
        float | None, typer.Option(min=0, help="Memory of the device in GB, to hold the estimate against.")
    ] = None,
) -> None:
    """Check a training configuration: data, tokenizer, lengths, batches, memory."""
    from regimen.config.load import load_train_config
    from regimen.pipelines.doctor import doctor as check

    checkup = check(load_train_config(config, overrides or ()), device_memory=device_memory)
    if json:
        typer.echo(encode_row(checkup).decode(), nl=False)
    else:
        print_checkup(checkup, Console(highlight=False))
    if not checkup.ok:
        raise typer.Exit(1)


def print_checkup(checkup: Checkup, console: Console) -> None:
    """Figures, problems, and the verdict in the last line."""
    table = Table(title=f"training by {checkup.algorithm}", title_justify="left", show_header=False, title_style="bold")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(checkup):
        table.add_row(name, escape(text))
    console.print(table)
    print_findings(checkup.findings, console)
    errors = sum(found.severity == "error" for found in checkup.findings)
    others = len(checkup.findings) - errors
    verdict = "[green]ok[/green]" if checkup.ok else f"[red]not ok[/red]: {errors} to mend first"
    console.print(f"[bold]{verdict}[/bold]" + (f" ({others} more to read)" if others else ""))


def _lines(checkup: Checkup) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, data in checkup.data.items():
        longest = f", the longest {data.longest:,} tokens" if data.longest else ""
        lines.append((name, f"{data.source}: {data.rows:,} rows, {data.usable:,} usable{longest}"))
    if checkup.schedule is not None:
        lines.append(("batches", _schedule(checkup.schedule)))
    lines.append(("memory", _memory(checkup.memory)))
    lines += [("note", note) for note in checkup.notes]
    return lines


def _schedule(plan: Schedule) -> str:
    steps = f"{plan.steps_per_epoch:,} steps an epoch, {plan.total_steps:,} in all"
    return f"{plan.size:,} {plan.unit} by {plan.batch:,}: {steps}"


def _memory(estimate: MemoryEstimate | None) -> str:
    if estimate is None:
        return "no estimate: the model's config.json is not there or names its sizes otherwise"
    parts = sizes_text(estimate.parts)
    return f"about {estimate.total / GIGABYTE:.1f} GB for {estimate.parameters:,} parameters, an estimate ({parts})"

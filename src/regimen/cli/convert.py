"""`regimen convert`: rollouts to training rows.

In: flags. Out: the converted folder, and on the screen its ledger and files, or the manifest as JSON.
Refuses what the pipeline refuses; errors are left to the command line's one place for them.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regimen.convert.ledger import meaning_of
from regimen.convert.manifest import Manifest
from regimen.convert.options import DEFAULT_MAX_PAIRS, DEFAULT_MIN_GAP, ConvertOptions
from regimen.pipelines.convert import convert as convert_rollouts


class TargetChoice(StrEnum):
    """What to train with the rows."""

    sft = "sft"
    dpo = "dpo"
    grpo = "grpo"


class ReasoningChoice(StrEnum):
    """Where reasoning goes."""

    auto = "auto"
    reasoning_content = "reasoning_content"
    inline = "inline"
    drop = "drop"


class StrategyChoice(StrEnum):
    """How rollouts of a task are paired."""

    same_prompt = "same_prompt"
    all_pairs = "all_pairs"


def convert(
    rollouts: Annotated[list[Path], typer.Argument(help="Rollout files (JSON lines).", show_default=False)],
    to: Annotated[TargetChoice, typer.Option(help="What to train with the rows.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    format_name: Annotated[
        str,
        typer.Option("--format", help="sft: openai, simple; dpo: preference, binary; grpo: gym, response."),
    ] = "auto",
    reward_threshold: Annotated[
        float | None,
        typer.Option(help="Least reward to keep (sft) or to count as solved (grpo). [default: 1 if binary, else 0.95]"),
    ] = None,
    reasoning: Annotated[ReasoningChoice, typer.Option(help="Where reasoning goes.")] = ReasoningChoice.auto,
    require_tool_use: Annotated[
        bool, typer.Option("--require-tool-use", help="sft: keep only episodes with a tool call.")
    ] = False,
    max_per_task: Annotated[int | None, typer.Option(help="sft: at most this many rows per task.")] = None,
    min_turns: Annotated[int, typer.Option(help="sft: least number of model calls.")] = 1,
    strategy: Annotated[
        StrategyChoice, typer.Option(help="dpo: best against worst, or all pairs of a task.")
    ] = StrategyChoice.same_prompt,
    min_gap: Annotated[float, typer.Option(help="dpo: least difference of rewards.")] = DEFAULT_MIN_GAP,
    max_pairs_per_task: Annotated[int, typer.Option(help="dpo: limit for all_pairs.")] = DEFAULT_MAX_PAIRS,
    min_pass_rate: Annotated[float, typer.Option(help="grpo: drop tasks solved less often.")] = 0.0,
    max_pass_rate: Annotated[float, typer.Option(help="grpo: drop tasks solved more often.")] = 1.0,
    validation_fraction: Annotated[float, typer.Option(help="Share of tasks that validate.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    tasks: Annotated[Path | None, typer.Option(help="Task rows, where they do not stand beside the rollouts.")] = None,
    max_bad: Annotated[float, typer.Option(help="Share of unreadable rows to accept.")] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a converted folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Convert rollouts into SFT, DPO or GRPO rows, with every row accounted for."""
    options = ConvertOptions(
        format=format_name,
        reward_threshold=reward_threshold,
        reasoning=reasoning.value,
        require_tool_use=require_tool_use,
        max_per_task=max_per_task,
        min_turns=min_turns,
        strategy=strategy.value,
        min_gap=min_gap,
        max_pairs_per_task=max_pairs_per_task,
        min_pass_rate=min_pass_rate,
        max_pass_rate=max_pass_rate,
        validation_fraction=validation_fraction,
        seed=seed,
        max_bad=max_bad,
    )
    manifest = convert_rollouts(rollouts, to.value, out, options, tasks=tasks, overwrite=overwrite)
    if json:
        typer.echo(msgspec.json.encode(manifest).decode())
    else:
        print_manifest(manifest, out, Console())


def print_manifest(manifest: Manifest, out: Path, console: Console) -> None:
    """The ledger, the files and the warnings, short."""
    console.print(ledger_table(manifest))
    for name, count in {**manifest.ledger.uses, **manifest.ledger.notes}.items():
        console.print(f"  {name.replace('_', ' ')}: {count}", highlight=False)
    console.print(f"written to {escape(str(out))}, as {manifest.target} rows ({manifest.format}):", highlight=False)
    for file in manifest.outputs:
        console.print(f"  {file.name:<22} {file.rows:>7,} rows {file.size:>12,} bytes", highlight=False)
    for warning in manifest.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)


def ledger_table(manifest: Manifest) -> Table:
    """One line per bucket; the last line holds the totals, which the conversion has checked."""
    ledger = manifest.ledger
    has_tokens = ledger.num_tokens > 0
    table = Table(title=f"{ledger.num_rows:,} rollout rows", title_justify="left", show_footer=True)
    table.add_column("bucket", footer="all rows")
    table.add_column("rows", justify="right", footer=f"{ledger.num_rows:,}")
    if has_tokens:
        table.add_column("sampled tokens", justify="right", footer=f"{ledger.num_tokens:,}")
    table.add_column("what it means")
    for bucket, count in ledger.rows.items():
        tokens = [f"{ledger.tokens.get(bucket, 0):,}"] if has_tokens else []
        table.add_row(bucket, f"{count:,}", *tokens, meaning_of(bucket))
    return table

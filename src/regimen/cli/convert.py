"""`regimen convert`: rollouts to training rows.

In: flags. Out: the converted folder, and on the screen its ledger and files, or the manifest as JSON.
Refuses what the pipeline refuses; errors are left to the command line's one place for them.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regimen.cli.progress import PatientReport, shown_progress
from regimen.convert.ledger import meaning_of
from regimen.convert.options import (
    DEFAULT_HIGH,
    DEFAULT_LOW,
    DEFAULT_MAX_PAIRS,
    DEFAULT_MIN_GAP,
    DEFAULT_SIMILARITY,
    ConvertOptions,
    parse_mix,
)
from regimen.rollouts.processes import Processes, processes_for
from regimen.rollouts.sources import checked_paths

if TYPE_CHECKING:
    from regimen.convert.manifest import Manifest


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


class EngineChoice(StrEnum):
    """Where the second pass runs."""

    local = "local"
    ray = "ray"


class StrategyChoice(StrEnum):
    """How rollouts of a task are paired."""

    same_prompt = "same_prompt"
    all_pairs = "all_pairs"
    halves = "halves"
    length_matched = "length_matched"
    branches = "branches"
    stratified = "stratified"


class SpellingChoice(StrEnum):
    """How tool calls and tools are spelled."""

    openai = "openai"
    nemo_rl = "nemo_rl"


def convert(
    rollouts: Annotated[list[Path], typer.Argument(help="Rollout files (JSON lines).", show_default=False)],
    to: Annotated[TargetChoice, typer.Option(help="What to train with the rows.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    format_name: Annotated[
        str,
        typer.Option("--format", help="sft: openai, simple; dpo: preference, binary; grpo: gym, response."),
    ] = "auto",
    spelling: Annotated[
        SpellingChoice,
        typer.Option(help="sft, dpo: tool calls and tools nested as OpenAI has them, or flat as in NeMo RL's guides."),
    ] = SpellingChoice.openai,
    where: Annotated[
        str | None, typer.Option(help="Condition on row fields, such as 'accuracy>=0.8 and set_overlap>0.9'.")
    ] = None,
    reward_threshold: Annotated[
        float | None,
        typer.Option(help="Least reward to keep (sft) or to count as solved (grpo). (default 1 if binary, else 0.95)"),
    ] = None,
    reasoning: Annotated[ReasoningChoice, typer.Option(help="Where reasoning goes.")] = ReasoningChoice.auto,
    require_tool_use: Annotated[
        bool, typer.Option("--require-tool-use", help="sft: keep only episodes with a tool call.")
    ] = False,
    max_per_task: Annotated[
        int | None,
        typer.Option("--best-of", "--max-per-task", help="sft: keep the best N of a task, of equal ones the shorter."),
    ] = None,
    min_turns: Annotated[int, typer.Option(help="sft: least number of model calls.")] = 1,
    balance: Annotated[
        float | None, typer.Option(help="sft: no environment has more than K times the rows of the smallest.")
    ] = None,
    strategy: Annotated[StrategyChoice, typer.Option(help="dpo: how answers are paired.")] = StrategyChoice.same_prompt,
    min_gap: Annotated[float, typer.Option(help="dpo: least difference of rewards.")] = DEFAULT_MIN_GAP,
    max_pairs_per_task: Annotated[
        int, typer.Option(help="dpo: limit for every strategy but same_prompt.")
    ] = DEFAULT_MAX_PAIRS,
    high_threshold: Annotated[float, typer.Option(help="stratified: least reward of a chosen row.")] = DEFAULT_HIGH,
    low_threshold: Annotated[float, typer.Option(help="stratified: largest reward of a rejected row.")] = DEFAULT_LOW,
    across_tasks: Annotated[
        bool, typer.Option("--across-tasks", help="stratified: pair what is left with rows of other tasks.")
    ] = False,
    min_pass_rate: Annotated[float, typer.Option(help="grpo: drop tasks solved less often.")] = 0.0,
    max_pass_rate: Annotated[float, typer.Option(help="grpo: drop tasks solved more often.")] = 1.0,
    with_pass_rate: Annotated[
        bool, typer.Option("--with-pass-rate", help="grpo: a field pass_rate in each row.")
    ] = False,
    mix: Annotated[str | None, typer.Option(help="grpo: shares of environments, such as calculator=2,mcqa=1.")] = None,
    upsample: Annotated[bool, typer.Option("--upsample", help="Reach the shares of --mix by repeating rows.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Evaluation file; rows whose prompt is in it, or nearly, are left out.")
    ] = None,
    against_similarity: Annotated[
        float, typer.Option(help="Overlap of five-word sequences from which a prompt is nearly the same.")
    ] = DEFAULT_SIMILARITY,
    validation_fraction: Annotated[float, typer.Option(help="Share of tasks that validate.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    tasks: Annotated[Path | None, typer.Option(help="Task rows, where they do not stand beside the rollouts.")] = None,
    max_bad: Annotated[float, typer.Option(help="Share of unreadable rows to accept.")] = 0.01,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every row back and compare it with its rollouts.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes work. (default one per core, for large files)")
    ] = None,
    engine: Annotated[
        EngineChoice, typer.Option(help="Where they work: here, or on a Ray cluster.")
    ] = EngineChoice.local,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a converted folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Convert rollouts into SFT, DPO or GRPO rows, with every row accounted for."""
    options = ConvertOptions(
        format=format_name,
        spelling=spelling.value,
        where=where,
        reward_threshold=reward_threshold,
        reasoning=reasoning.value,
        require_tool_use=require_tool_use,
        max_per_task=max_per_task,
        min_turns=min_turns,
        balance=balance,
        strategy=strategy.value,
        min_gap=min_gap,
        max_pairs_per_task=max_pairs_per_task,
        high_threshold=high_threshold,
        low_threshold=low_threshold,
        across_tasks=across_tasks,
        min_pass_rate=min_pass_rate,
        max_pass_rate=max_pass_rate,
        with_pass_rate=with_pass_rate,
        mix=None if mix is None else parse_mix(mix),
        upsample=upsample,
        against=None if against is None else str(against),
        against_similarity=against_similarity,
        validation_fraction=validation_fraction,
        seed=seed,
        max_bad=max_bad,
    )
    number = processes or processes_for(checked_paths(rollouts))
    with Processes(number, module="regimen.pipelines.pieces") as at_work, shown_progress() as report:
        at_work.start()
        from regimen.pipelines.convert import convert as convert_rollouts  # while the processes import, too

        manifest = convert_rollouts(
            rollouts,
            to.value,
            out,
            options,
            tasks=tasks,
            overwrite=overwrite,
            verify=verify,
            num_processes=number,
            processes=at_work,
            engine="ray" if engine is EngineChoice.ray else "local",
            progress=PatientReport(report),
        )
    if json:
        typer.echo(msgspec.json.encode(manifest).decode())
    else:
        print_manifest(manifest, out, Console())


def print_manifest(manifest: Manifest, out: Path, console: Console) -> None:
    """The ledger, the files, the warnings and the command that trains on them, short."""
    from regimen.convert.command import training_command  # numpy takes as long to load as all the rest

    console.print(ledger_table(manifest))
    for name, count in {**manifest.ledger.uses, **manifest.ledger.notes}.items():
        console.print(f"  {name.replace('_', ' ')}: {count}", highlight=False)
    for line in extra_lines(manifest):
        console.print(f"  {line}", highlight=False)
    console.print(f"written to {escape(str(out))}, as {manifest.target} rows ({manifest.format}):", highlight=False)
    for file in manifest.outputs:
        console.print(f"  {file.name:<22} {file.rows:>7,} rows {file.size:>12,} bytes", highlight=False)
    for warning in manifest.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)
    command = training_command(manifest, out)
    if command is not None:
        console.print(f"next: {escape(command)}", highlight=False, soft_wrap=True)


def extra_lines(manifest: Manifest) -> list[str]:
    """What only some conversions have to tell: missing fields, contamination, the mixture, verified rows."""
    lines: list[str] = []
    if (screened := manifest.screened) is not None:
        lines += [f"rows without the field {escape(name)}: {n:,}" for name, n in screened.missing_fields.items()]
        if screened.evaluation_prompts:
            lines.append(f"rows with a prompt of the evaluation: {screened.exact_rows:,}")
            lines.append(f"rows with nearly such a prompt: {screened.near_rows:,}")
    for name, count in manifest.mix.items():
        lines.append(f"{escape(name)}: {count.tasks_kept:,} of {count.tasks_seen:,} tasks, {count.rows:,} rows")
    if manifest.verified_rows is not None:
        lines.append(f"verified rows: {manifest.verified_rows:,}")
    return lines


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

"""The first batch of a run, for a person to look at: tokens, masks, weights.

In: a configuration. Out: text on the screen. Tokens that train stand in bold green, context is dim.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from regimen.config.schema import TrainConfig
from regimen.pipelines.prepare import Prepared, prepare
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches
from regimen.tokens.template import Renderer

MAX_SHOWN = 4


def show_first_batch(config: TrainConfig) -> None:
    """Prepare a run and print its first batch; episodes played for a look do not replace those of the run."""
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(config, Path(scratch), for_training=False)
        try:
            _show(prepared, config)
        finally:
            prepared.close()


def _show(prepared: Prepared, config: TrainConfig) -> None:
    """Print the first batch of `prepared.source` and how it is laid out."""
    console = Console()
    batch = prepared.source.batch(0)
    for index, sequence in enumerate(batch.sequences[:MAX_SHOWN]):
        console.rule(f"sequence {index}")
        console.print(_coloured(sequence, prepared.renderer))
    table = Table(title=f"first batch: {len(batch.sequences)} sequences (first {MAX_SHOWN} above)")
    columns = ("sequence", "tokens", "trained", "spans", "weight", "advantage", "side")
    for column in columns:
        table.add_column(column, justify="right")
    for index, sequence in enumerate(batch.sequences[:32]):
        table.add_row(*_cells(index, sequence))
    console.print(table)
    padded = prepared.policy.unrolled is not None
    forests = micro_batches(batch.sequences, config.policy.train_token_budget, padded=padded)
    alone = sum(len(sequence.ids) for sequence in batch.sequences)
    computed = sum(forest.num_tokens for forest in forests)
    console.print(
        f"valid tokens {batch.valid_tokens:g}, valid sequences {batch.valid_sequences:g}; "
        f"{len(forests)} micro-batches compute {computed} tokens for {alone} "
        f"({'each sequence a row of its own' if padded else 'shared prefixes once'})"
    )


def _coloured(sequence: TrainingSequence, renderer: Renderer) -> Text:
    text = Text()
    position = 0
    for start, stop in [*sequence.spans, (len(sequence.ids), len(sequence.ids))]:
        text.append(renderer.decode([int(i) for i in sequence.ids[position:start]]), style="dim")
        text.append(renderer.decode([int(i) for i in sequence.ids[start:stop]]), style="bold green")
        position = stop
    return text


def _cells(index: int, sequence: TrainingSequence) -> list[str]:
    advantage = f"{sequence.advantage[0]:+.3f}" if len(sequence.advantage) else "-"
    side = ("chosen" if sequence.is_chosen else "rejected") if sequence.pair >= 0 else "-"
    spans = " ".join(f"{start}:{stop}" for start, stop in sequence.spans)
    cells = (index, len(sequence.ids), sequence.num_trained, spans, f"{sequence.sample_mask:g}", advantage, side)
    return [str(cell) for cell in cells]

"""Counts that must balance, and the batch that is kept when numbers are none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

from regimen.errors import NonFiniteError, RunError
from regimen.pipelines.batches import Batch
from regimen.pipelines.guards import check_forests, check_weights, keep_failed_batch
from regimen.tokens.forest import Forest, TrainingSequence
from regimen.tokens.packing import micro_batches
from regimen.tokens.template import Renderer

SEQUENCES = [
    TrainingSequence(ids=[5, 6, 7, 8], spans=[(2, 4)]),
    TrainingSequence(ids=[5, 6, 9], spans=[(2, 3)]),
    TrainingSequence(ids=[40, 41, 42], spans=[(1, 3)]),
]


class NanLogprobs:
    """A policy whose first micro-batch gives numbers that are none."""

    def logprobs(self, forests: list[Forest]) -> list[np.ndarray]:
        values = [np.full(len(forest.target), -1.0, np.float32) for forest in forests]
        values[0][0] = math.nan
        return values


def test_whole_batches_pass() -> None:
    forests = micro_batches(SEQUENCES, 5)
    assert len(forests) > 1
    check_forests(forests, SEQUENCES)
    check_weights(forests, Batch(SEQUENCES, 5.0, 3.0))


def test_masked_sequences_are_not_missed() -> None:
    sequences = [*SEQUENCES, TrainingSequence(ids=[5, 6, 7], spans=[(1, 3)], sample_mask=0.0)]
    forests = micro_batches(sequences, 100)
    assert len(forests[0].row) == 3
    check_forests(forests, sequences)
    check_weights(forests, Batch(sequences, 5.0, 3.0))


def test_a_lost_sequence_a_doubled_one_and_lost_tokens_are_found() -> None:
    forests = micro_batches(SEQUENCES, 5)
    with pytest.raises(RunError, match=r"does not balance: sequences in the micro-batches: \d; expected 3"):
        check_forests(forests[1:], SEQUENCES)
    with pytest.raises(RunError, match="does not balance"):
        check_forests([*forests, forests[0]], SEQUENCES)
    lost = [replace(forests[0], target=forests[0].target[1:]), *forests[1:]]
    with pytest.raises(RunError, match="tokens to train in the micro-batches: 4; expected 5"):
        check_forests(lost, SEQUENCES)


def test_weights_that_are_not_the_divisor_are_found() -> None:
    forests = micro_batches(SEQUENCES, 100)
    with pytest.raises(RunError, match="trained tokens: 5; expected 6"):
        check_weights(forests, Batch(SEQUENCES, 6.0, 3.0))


def test_the_failed_batch_can_be_looked_at(tiny: ModuleType, tmp_path: Path) -> None:
    renderer = Renderer(tiny.tiny_tokenizer())
    forests = micro_batches(SEQUENCES, 5)
    error = NonFiniteError("loss nan, gradient norm nan: not finite")
    kept = keep_failed_batch(error, tmp_path / "failures" / "step_3", 3, NanLogprobs(), forests, renderer)  # type: ignore[arg-type]
    assert str(tmp_path / "failures" / "step_3") in str(kept)
    assert [path.name for path in (tmp_path / "failures").iterdir()] == ["step_3"]
    record = json.loads((tmp_path / "failures" / "step_3" / "batch.json").read_text())
    assert (record["step"], len(record["micro_batches"])) == (3, len(forests))
    assert [bool(batch["not_finite"]) for batch in record["micro_batches"]] == [True] + [False] * (len(forests) - 1)
    assert record["micro_batches"][0]["not_finite"] == {"logprob": 1}
    texts = {s["row"]: s["text"] for batch in record["micro_batches"] for s in batch["sequences"]}
    assert texts == {row: renderer.decode(list(sequence.ids)) for row, sequence in enumerate(SEQUENCES)}
    arrays = load_file(tmp_path / "failures" / "step_3" / "batch.safetensors")
    assert arrays["0.tokens"].tolist() == forests[0].tokens.tolist()
    assert np.isnan(arrays["0.logprob"]).sum() == 1
    assert arrays["1.weight"].dtype == np.float32


def test_a_full_disk_does_not_hide_what_went_wrong(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "failures").write_text("in the way")
    error = NonFiniteError("loss nan", fix="lower the learning rate")
    forests, renderer = micro_batches(SEQUENCES, 5), Renderer(tiny.tiny_tokenizer())
    kept = keep_failed_batch(error, tmp_path / "failures" / "step_3", 3, NanLogprobs(), forests, renderer)  # type: ignore[arg-type]
    assert kept.message.startswith("loss nan; the batch could not be kept (")
    assert kept.fix == "lower the learning rate"

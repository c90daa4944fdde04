"""What stops a training step with a reason: counts that do not balance, and numbers that are none.

In: a batch and the forests made of it. Out: nothing; or a `RunError`; or, for a loss or gradient that is not finite,
the batch in a folder for a person to look at: batch.safetensors (the arrays of each micro-batch, as the loss saw them,
and the log-probabilities under the unchanged weights) and batch.json (the figures, and each sequence as text).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regimen.errors import NonFiniteError, RunError
from regimen.pipelines.batch import Batch
from regimen.policy.base import Policy
from regimen.policy.checkpoint import save_tensors
from regimen.policy.durable import rename_durably, sync_folder
from regimen.tokens.forest import Forest, TrainingSequence
from regimen.tokens.packing import is_computed
from regimen.tokens.template import Renderer

WITHOUT_VARIANCE = "steps_without_variance"


def steps_without_variance(metrics: Mapping[str, float], latest: Mapping[str, float]) -> float:
    """For how many steps, this one included, no group's rewards differed. A metric, so that it outlives a kill."""
    return 0.0 if metrics["groups_with_variance"] else latest.get(f"train/{WITHOUT_VARIANCE}", 0.0) + 1


def nothing_to_learn(limit: int, step: int) -> RunError:
    """The error of a run whose rewards tell nothing apart."""
    return RunError(
        f"in no group did the rewards differ for {limit} steps in succession: there is nothing to learn",
        where=f"step {step}",
        fix="choose tasks that the model solves sometimes, raise grpo.num_generations_per_prompt or the "
        "temperature, or set grpo.max_steps_without_variance=null",
    )


def check_balance(counted: float, expected: float, what: str) -> None:
    """Raise `RunError` when a total is not what its parts add up to."""
    if not math.isclose(counted, expected, rel_tol=1e-6, abs_tol=1e-6):
        raise RunError(
            f"the ledger does not balance: {what}: {counted:g}",
            expected=f"{expected:g}",
            fix="this is a defect of Regimen, and going on would train on something else; please report it",
        )


def check_forests(forests: Sequence[Forest], sequences: Sequence[TrainingSequence]) -> None:
    """Every sequence of a batch that has a weight stands in one micro-batch, with every token that it trains."""
    sequences = [sequence for sequence in sequences if is_computed(sequence)]
    rows = sorted(int(row) for forest in forests for row in forest.row)
    check_balance(len(rows), len(sequences), "sequences in the micro-batches")
    check_balance(len(set(rows)), len(sequences), "different sequences in the micro-batches")
    entries = sum(len(forest.target) for forest in forests)
    check_balance(entries, sum(sequence.num_trained for sequence in sequences), "tokens to train in the micro-batches")


def check_weights(forests: Sequence[Forest], batch: Batch) -> None:
    """Where nothing may be left out, the weights in the micro-batches are those that the loss is divided by."""
    check_balance(sum(float(f.weight.sum(dtype=np.float64)) for f in forests), batch.valid_tokens, "trained tokens")


def keep_failed_batch(
    error: NonFiniteError, folder: Path, step: int, policy: Policy, forests: Sequence[Forest], renderer: Renderer
) -> NonFiniteError:
    """Write the batch of `step` to `folder`; returns `error` with the place in it, or why it could not be written."""
    try:
        _write_batch(error.message, folder, step, policy, forests, renderer)
    except (OSError, RunError, RuntimeError) as failure:  # a full disk or device must not hide what went wrong
        return NonFiniteError(f"{error.message}; the batch could not be kept ({failure})", fix=error.fix)
    return NonFiniteError(
        error.message,
        where=str(folder),
        fix="look at batch.json there, whose micro-batches say where values are not finite; lower the learning rate",
    )


def _write_batch(
    message: str, folder: Path, step: int, policy: Policy, forests: Sequence[Forest], renderer: Renderer
) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    logprobs = policy.logprobs(forests)
    pairs = list(zip(forests, logprobs, strict=True))
    arrays = {
        f"{index}.{name}": torch.from_numpy(np.ascontiguousarray(value))
        for index, (forest, logprob) in enumerate(pairs)
        for name, value in {**_arrays(forest), "logprob": logprob}.items()
    }
    save_tensors(arrays, temporary / "batch.safetensors")
    record = {
        "step": step,
        "error": message,
        "valid_tokens": forests[0].valid_tokens,
        "valid_sequences": forests[0].valid_sequences,
        "micro_batches": [_described(forest, values, renderer) for forest, values in pairs],
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (temporary / "batch.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    sync_folder(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    rename_durably(temporary, folder)


def _arrays(forest: Forest) -> dict[str, np.ndarray]:
    values = {item.name: getattr(forest, item.name) for item in fields(forest)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _described(forest: Forest, logprob: np.ndarray, renderer: Renderer) -> dict[str, Any]:
    """A micro-batch for a person: which of its values are not finite, and its sequences as text."""
    arrays = {**_arrays(forest), "logprob": logprob}
    floats = {name: value for name, value in arrays.items() if np.issubdtype(value.dtype, np.floating)}
    return {
        "num_tokens": forest.num_tokens,
        "not_finite": {name: int((~np.isfinite(v)).sum()) for name, v in floats.items() if not np.isfinite(v).all()},
        "sequences": [_sequence(forest, place, logprob, renderer) for place in range(len(forest.row))],
    }


def _sequence(forest: Forest, place: int, logprob: np.ndarray, renderer: Renderer) -> dict[str, Any]:
    entries = np.flatnonzero(forest.sequence == place)
    path = forest.path(int(forest.target[entries[-1]])) if len(entries) else np.zeros(0, np.int64)
    return {
        "row": int(forest.row[place]),
        "episode": int(forest.episode[place]),
        "num_trained": len(entries),
        "sample_mask": float(forest.sample_mask[place]),
        "logprobs_not_finite": int((~np.isfinite(logprob[entries])).sum()),
        "text": renderer.decode([int(token) for token in forest.tokens[path]]),
    }

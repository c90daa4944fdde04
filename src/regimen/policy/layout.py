"""The shape of a model's batches: a forest in which prefixes are shared, or a padded row for each sequence.

In: a causal language model, forests. Out: hidden states from which each supervised token is predicted, and why a model
gets rows. What mixes tokens outside attention (state spaces, linear attention, convolutions) would carry one sequence
into its siblings; it is found by its layers, and by comparing a small forest with the model's own code on rows.
Refuses: a model whose logits are not the product of its vocabulary head, as log-probabilities are computed from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.errors import PolicyError
from regimen.models import token_mixers
from regimen.policy.attention import ATTENTION_NAME, plan_attention
from regimen.tokens.forest import Forest, TrainingSequence, build_forest

# Relative; rounding in float32 stays far below it, what leaks from one sequence into another far above.
_TOLERANCE = 1e-3
_ROUNDED = 5e-2  # the same between weights or products of 16 bits


@dataclass(frozen=True, slots=True)
class Rows:
    """A forest unrolled: S sequences of at most L tokens, padded behind their ends; where its E entries stand."""

    tokens: Tensor  # [S, L] int64, 0 behind the end
    mask: Tensor  # [S, L] int64, 1 on tokens
    row: Tensor  # [E] int64
    column: Tensor  # [E] int64, of the token that predicts the entry


def unroll(forest: Forest, device: torch.device) -> Rows:
    """The path to the last trained token of each sequence as a row of its own."""
    last = np.flatnonzero(np.append(np.diff(forest.sequence) != 0, len(forest.sequence) > 0))
    paths = [np.flatnonzero(forest.end[: token + 1] > token) for token in forest.target[last].tolist()]
    width = max(map(len, paths), default=0)
    tokens, mask = np.zeros((len(paths), width), np.int64), np.zeros((len(paths), width), np.int64)
    for row, path in enumerate(paths):
        tokens[row, : len(path)], mask[row, : len(path)] = forest.tokens[path], 1
    rows = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1))
    arrays = (tokens, mask, rows, forest.depth[forest.target] - 1)
    return Rows(*(torch.from_numpy(array).to(device) for array in arrays))


def forest_states(decoder: Any, forest: Forest, device: torch.device) -> Tensor:
    """Hidden states of the forest's tokens, `[T, H]`, with the attention of `regimen.policy.attention`."""
    return decoder(
        input_ids=torch.from_numpy(forest.tokens)[None].to(device),
        position_ids=torch.from_numpy(forest.depth)[None].to(device),
        use_cache=False,
        forest_plan=plan_attention(forest),
    ).last_hidden_state[0]


def row_states(decoder: Any, rows: Rows) -> Tensor:
    """Hidden states of padded rows, `[S, L, H]`, with the model's own attention."""
    return decoder(input_ids=rows.tokens, attention_mask=rows.mask, use_cache=False).last_hidden_state


@torch.no_grad()
def why_unrolled(model: Any) -> str | None:
    """Why `model` gets rows; None for forests, whose attention is then set. Its weights are whole.

    Raises `PolicyError` where the model computes its logits in another way than by its head.
    """
    device = next(model.parameters()).device
    if all(weight.dtype == torch.float32 for weight in model.parameters()):
        return _tried(model, device, _TOLERANCE)
    with torch.autocast(device.type, dtype=torch.bfloat16):  # adapters in float32 beside weights that are not
        return _tried(model, device, _ROUNDED)


def _tried(model: Any, device: torch.device, tolerance: float) -> str | None:
    forest = _small_forest()
    rows = unroll(forest, device)
    if (model.config._attn_implementation or "").startswith("regimen"):  # set by an earlier owner of this model
        model.set_attn_implementation("eager")
    before = model.config._attn_implementation
    own = row_states(model.base_model, rows)
    _require_plain_head(model, rows, own, tolerance)
    mixers = token_mixers(model)
    if mixers:
        return f"tokens are mixed outside attention, by {', '.join(mixers)}"
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        states = forest_states(model.base_model, forest, device)[torch.from_numpy(forest.parent[forest.target])]
    except (PolicyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
    else:
        if _distance(states, own[rows.row, rows.column]) < tolerance:
            return None
        reason = "with shared prefixes its numbers are not those of its own code"
    model.set_attn_implementation(before)
    return reason


def _small_forest() -> Forest:
    """Two sequences with a common prefix, and a third: five tokens and more, so that a short convolution reaches."""
    prompt = [3, 5, 2, 7]
    paths = [[*prompt, 4, 6, 9, 8], [*prompt, 6, 4, 3], [8, 2, 5, 9, 6]]
    return build_forest([TrainingSequence(path, [(1, len(path))]) for path in paths])


def _require_plain_head(model: Any, rows: Rows, states: Tensor, tolerance: float) -> None:
    logits = model(input_ids=rows.tokens, attention_mask=rows.mask, use_cache=False).logits
    used = rows.mask.bool()
    own = model.get_output_embeddings()(states)
    if _distance(own[used], logits[used]) > tolerance:
        raise PolicyError(
            f"a {type(model).__name__} changes its logits behind the vocabulary head (a cap, or a scale)",
            expected="logits that are the head's product with the last hidden states",
        )


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())

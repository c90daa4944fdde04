"""From the token fields of a rollout's items to the token sequences that train.

In: `response.output` items, some carrying `prompt_token_ids`, `generation_token_ids`, `generation_log_probs`.
Out: `Turn`s (one per model call) and `TokenSequence`s (turns whose prompt continues the episode, joined).
Refuses: an item with some of the three fields but not all, or with unequal lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from regimen.errors import RolloutError

TOKEN_FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")


class Turn(msgspec.Struct, frozen=True):
    """One model call: the ids it was given, the ids it sampled and their log-probabilities (same length)."""

    prompt_ids: list[int]
    generation_ids: list[int]
    logprobs: list[float]


class TokenSequence(msgspec.Struct, frozen=True):
    """One token sequence of an episode.

    `spans` are the half-open ranges of `ids` that were sampled, in order; `logprobs` holds one value per sampled
    token, in the same order, or is empty where the sampler's are not known.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    logprobs: list[float]

    @property
    def num_trained(self) -> int:
        """Number of sampled tokens."""
        return sum(stop - start for start, stop in self.spans)


def turns_of(output: Sequence[dict[str, Any]]) -> list[Turn]:
    """The model calls recorded in `output`, in order; empty when no item carries token ids.

    Raises `RolloutError` when an item has only part of the three token fields, or lengths that differ.
    """
    turns: list[Turn] = []
    for index, item in enumerate(output):
        present = [field for field in TOKEN_FIELDS if item.get(field) is not None]
        if not present:
            continue
        where = f"output[{index}]"
        if len(present) != len(TOKEN_FIELDS):
            missing = sorted(set(TOKEN_FIELDS) - set(present))
            raise RolloutError(f"has {', '.join(present)} but not {', '.join(missing)}", where=where)
        turn = _turn(item, where)
        turns.append(turn)
    return turns


def _turn(item: dict[str, Any], where: str) -> Turn:
    prompt, sampled, logprobs = (item[field] for field in TOKEN_FIELDS)
    for field, value, kinds in (
        ("prompt_token_ids", prompt, int),
        ("generation_token_ids", sampled, int),
        ("generation_log_probs", logprobs, (int, float)),
    ):
        if not isinstance(value, list) or not all(
            isinstance(x, kinds) and not isinstance(x, bool) for x in cast("list[Any]", value)
        ):
            raise RolloutError(f"{field} is not a list of numbers", where=where)
    if len(sampled) != len(logprobs):
        raise RolloutError(f"{len(sampled)} sampled ids but {len(logprobs)} log-probabilities", where=where)
    if not all(_is_finite(x) for x in logprobs):
        raise RolloutError("generation_log_probs holds a value that is not finite", where=where)
    return Turn(prompt, sampled, [float(x) for x in logprobs])


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


def sequences_of(turns: Sequence[Turn]) -> list[TokenSequence]:
    """Join turns whose prompt begins with everything seen so far; a turn that does not starts a new sequence.

    The sampled tokens of all sequences together are exactly the sampled tokens of all turns.
    """
    sequences: list[TokenSequence] = []
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    logprobs: list[float] = []
    for turn in turns:
        if ids and turn.prompt_ids[: len(ids)] != ids:
            sequences.append(TokenSequence(ids, spans, logprobs))
            ids, spans, logprobs = [], [], []
        start = len(turn.prompt_ids)
        ids = [*turn.prompt_ids, *turn.generation_ids]
        spans = [*spans, (start, len(ids))]
        logprobs = [*logprobs, *turn.logprobs]
    if ids:
        sequences.append(TokenSequence(ids, spans, logprobs))
    return sequences

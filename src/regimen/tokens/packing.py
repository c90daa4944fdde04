"""Dividing a global batch into micro-batches under a token budget, keeping what shares a prefix together.

In: training sequences. Out: forests whose losses add up to that of the whole batch.
Refuses: a unit (a sequence, or a pair) that is longer than the budget is not cut; it gets a micro-batch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regimen.tokens.forest import (
    Forest,
    TrainingSequence,
    build_forest,
    common_prefix,
    lexicographic_order,
    normalisers,
)
from regimen.tokens.padding import padded_groups


def micro_batches(
    sequences: Sequence[TrainingSequence],
    token_budget: int,
    *,
    share: bool = True,
    valid_tokens: float | None = None,
    valid_sequences: float | None = None,
    num_shares: int = 1,
    padded: bool = False,
) -> list[Forest]:
    """Forests of at most `token_budget` tokens each (a longer unit stands alone), in a deterministic order.

    Sequences of one pair are one unit and never split. Units are taken in lexicographic order, so that neighbours share
    the longest prefixes, and a unit is counted with the tokens it adds. Sequences without a trained token are left out:
    nothing of them would be computed. The normalisers default to those of all of `sequences`.
    `num_shares` processes compute them: where the budget would give fewer forests, it is lowered to give as many.
    `padded`: each sequence will be a row, filled up to the longest of its forest; nothing is shared, rows of about
    equal lengths stand together, and the budget counts the filling too.
    """
    tokens_total, sequences_total = normalisers(sequences)
    tokens_total = tokens_total if valid_tokens is None else valid_tokens
    sequences_total = sequences_total if valid_sequences is None else valid_sequences
    arrays = [_computed_ids(sequence) for sequence in sequences]
    share = share and not padded
    forests: list[Forest] = []
    units = _units(sequences, arrays)
    groups = padded_groups(units, [len(array) for array in arrays], token_budget, num_shares) if padded else None
    for rows in groups or _groups(units, arrays, token_budget, share, num_shares):
        part = [sequences[row] for row in rows]
        trimmed = [_trimmed(sequence, arrays[row]) for sequence, row in zip(part, rows, strict=True)]
        forests.append(
            build_forest(trimmed, rows=rows, valid_tokens=tokens_total, valid_sequences=sequences_total, share=share)
        )
    return forests


def _computed_ids(sequence: TrainingSequence) -> np.ndarray:
    """The ids up to the last trained one: nothing behind it is needed."""
    stop = sequence.spans[-1][1] if sequence.spans else 0
    return np.asarray(sequence.ids, dtype=np.int64)[:stop]


def _trimmed(sequence: TrainingSequence, ids: np.ndarray) -> TrainingSequence:
    return sequence if len(ids) == len(sequence.ids) else replace(sequence, ids=ids)


def _units(sequences: Sequence[TrainingSequence], arrays: Sequence[np.ndarray]) -> list[list[int]]:
    """What is never split, in lexicographic order: rows alone, or those of a pair."""
    units: dict[tuple[str, int], list[int]] = {}
    for row in lexicographic_order(arrays):
        if len(arrays[row]):
            pair = sequences[row].pair
            units.setdefault(("pair", pair) if pair >= 0 else ("row", row), []).append(row)
    return list(units.values())


def _groups(
    every: list[list[int]], arrays: Sequence[np.ndarray], token_budget: int, share: bool, num_shares: int
) -> list[list[int]]:
    groups = _filled(every, arrays, token_budget, share)
    low = 1
    while len(groups) < num_shares and low < token_budget:  # the least budget that needs no more than one each
        middle = (low + token_budget) // 2
        fewer = _filled(every, arrays, middle, share)
        if len(fewer) <= num_shares:
            groups, token_budget = fewer, middle
        else:
            low = middle + 1
    return groups


def _filled(units: list[list[int]], arrays: Sequence[np.ndarray], token_budget: int, share: bool) -> list[list[int]]:
    groups: list[list[int]] = []
    size = 0
    for rows in units:
        added = _added(rows, arrays, groups[-1][-1] if groups else None, share)
        if not groups or size + added > token_budget:
            groups.append([])
            size, added = 0, _added(rows, arrays, None, share)
        groups[-1].extend(rows)
        size += added
    return groups


def _added(rows: list[int], arrays: Sequence[np.ndarray], previous: int | None, share: bool) -> int:
    """Tokens that `rows` add behind the sequence `previous`: an upper bound of what the trie will add."""
    added = 0
    for row in rows:
        shared = common_prefix(arrays[previous], arrays[row]) if share and previous is not None else 0
        added += len(arrays[row]) - shared
        previous = row
    return added

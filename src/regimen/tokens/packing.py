"""Dividing a global batch into micro-batches under a token budget, keeping what shares a prefix together.

In: training sequences. Out: forests whose losses add up to that of the whole batch.
Refuses: a unit (a sequence, or a pair) that is longer than the budget is not cut; it gets a micro-batch of its own.

The units' prefixes form a trie. From its leaves upwards, the bins that the branches of a node were packed into are
packed into each other, best fit decreasing: two of them cost what they hold less the prefix that ends at the node. So
what shares most is put together first, a prefix is computed twice only where what hangs on it exceeds the budget, and
no two of the resulting bins would fit into one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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

    Sequences of one pair are one unit and never split. Units that `is_computed` is false of are left out: nothing of
    them would reach the loss. The normalisers default to those of all of `sequences`.
    `num_shares` processes compute the forests: they are made so that the one with most has as little as possible.
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


def is_computed(sequence: TrainingSequence) -> bool:
    """Whether anything of a sequence can reach the loss: it trains a token, and is not masked as a whole."""
    return bool(sequence.spans) and sequence.sample_mask != 0


def divide(sizes: Sequence[int], num_shares: int) -> list[list[int]]:
    """The places of `sizes` in shares of about equal sums: the largest first, each to the share with least so far."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    sums = [0] * num_shares
    for index in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        share = sums.index(min(sums))
        shares[share].append(index)
        sums[share] += sizes[index]
    return shares


def _computed_ids(sequence: TrainingSequence) -> np.ndarray:
    """The ids up to the last trained one: nothing behind it is needed."""
    stop = sequence.spans[-1][1] if is_computed(sequence) else 0
    return np.asarray(sequence.ids, dtype=np.int64)[:stop]


def _trimmed(sequence: TrainingSequence, ids: np.ndarray) -> TrainingSequence:
    return sequence if len(ids) == len(sequence.ids) else replace(sequence, ids=ids)


@dataclass(frozen=True, slots=True)
class _Bin:
    """Rows that are computed together, in lexicographic order of the units, and at most how many tokens they are."""

    size: int
    rows: list[int]


def _units(sequences: Sequence[TrainingSequence], arrays: Sequence[np.ndarray]) -> list[list[int]]:
    """The rows that must not be parted, a chosen one first; those without a computed token are in none."""
    units: dict[tuple[str, int], list[int]] = {}
    for row in lexicographic_order(arrays):
        if len(arrays[row]):
            pair = sequences[row].pair
            units.setdefault(("pair", pair) if pair >= 0 else ("row", row), []).append(row)
    return [sorted(rows, key=lambda row: not sequences[row].is_chosen) for rows in units.values()]


def _groups(
    units: list[list[int]], arrays: Sequence[np.ndarray], token_budget: int, share: bool, num_shares: int
) -> list[list[int]]:
    if not units:
        return []
    trie = _Trie(units, arrays, share)
    bins = trie.packed(token_budget)
    if num_shares > 1:
        bins = _balanced(trie, bins, token_budget, num_shares)
    return [sorted(each.rows, key=trie.place.__getitem__) for each in bins]


def _balanced(trie: _Trie, bins: list[_Bin], token_budget: int, num_shares: int) -> list[_Bin]:
    """The bins of the budget that leaves the share with most the least, among `bins` and those of lower budgets.

    Tried are the least budgets that give each share one bin more, and two more, than now.
    """
    rounds = -(-len(bins) // num_shares)
    candidates = [bins]
    for count in (rounds * num_shares, (rounds + 1) * num_shares):
        low, high = 1, token_budget
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(trie.packed(middle)) <= count else (middle + 1, high)
        candidates.append(trie.packed(low))
    return min(candidates, key=lambda found: (_most(found, num_shares), len(found)))


def _most(bins: list[_Bin], num_shares: int) -> int:
    """Tokens of the share that has most."""
    sizes = [each.size for each in bins]
    return max(sum(sizes[place] for place in share) for share in divide(sizes, num_shares))


class _Trie:
    """The units in lexicographic order, and how much of it neighbours share.

    A pair stands where its chosen sequence does: pairs may share that, as the best answer to a prompt against several
    others, and share the prompt in any case.
    """

    def __init__(self, units: list[list[int]], arrays: Sequence[np.ndarray], share: bool) -> None:
        starts = [arrays[unit[0]] for unit in units]
        order = lexicographic_order(starts)
        self.arrays, self.share = arrays, share
        self.place = {row: place for place, index in enumerate(order) for row in units[index]}
        self.has_pairs = any(len(unit) > 1 for unit in units)
        self.leaves = [_Bin(self._size(units[index]), units[index]) for index in order]
        self.shared = [0] * len(order)  # with the unit before
        if share:
            for place in range(1, len(order)):
                self.shared[place] = common_prefix(starts[order[place - 1]], starts[order[place]])

    def packed(self, budget: int) -> list[_Bin]:
        """All units in bins of at most `budget` tokens, but for single units beyond it."""
        nodes: list[tuple[int, list[_Bin]]] = [(0, [])]  # from the root to the branch that is being read
        for place, leaf in enumerate(self.leaves):
            below = [leaf]
            following = self.shared[place + 1] if place + 1 < len(self.leaves) else 0
            while nodes[-1][0] > following:
                depth, bins = nodes.pop()
                below = self._fill([*bins, *below], depth, budget)
            if nodes[-1][0] < following:
                nodes.append((following, []))
            nodes[-1][1].extend(below)
        return self._fill(nodes[0][1], 0, budget)

    def _fill(self, bins: list[_Bin], depth: int, budget: int) -> list[_Bin]:
        """Best fit decreasing among bins that share `depth` tokens."""
        if self.has_pairs and self.share and (whole := self._whole(bins, budget)) is not None:
            return [whole]
        filled: list[_Bin] = []
        open_bins: list[tuple[int, int]] = []  # size and index in `filled`, ascending
        for item in sorted(bins, key=lambda each: (-each.size, self.place[each.rows[0]])):
            # The fullest one with room for it: the last whose size leaves room for what the item adds.
            found = bisect_left(open_bins, (budget - item.size + depth + 1, -1)) - 1
            if found < 0:
                size, index = item.size, len(filled)
                filled.append(item)
            else:
                size, index = open_bins.pop(found)
                size += item.size - depth
                filled[index] = _Bin(size, filled[index].rows + item.rows)
            if size <= budget:
                insort(open_bins, (size, index))
        return filled

    def _whole(self, bins: list[_Bin], budget: int) -> _Bin | None:
        """All in one, where that fits. Counted exactly: pairs may share more than `depth` says."""
        rows = [row for each in bins for row in each.rows]
        size = self._size(rows)
        return _Bin(size, rows) if size <= budget else None

    def _size(self, rows: Sequence[int]) -> int:
        """Tokens of the trie of `rows`."""
        arrays = [self.arrays[row] for row in rows]
        total = sum(map(len, arrays))
        if not self.share or len(rows) == 1:
            return total
        ordered = [arrays[index] for index in lexicographic_order(arrays)]
        return total - sum(common_prefix(left, right) for left, right in pairwise(ordered))

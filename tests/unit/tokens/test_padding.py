"""Groups of rows that will be padded: whole units, equal lengths together, the budget with the filling."""

from __future__ import annotations

import numpy as np
import pytest

from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches
from regimen.tokens.padding import padded_groups


def test_the_budget_counts_the_filling() -> None:
    lengths = [3, 8, 4, 8]
    # 8 + 8 fill 16; then 4, 3 as two rows of 4
    assert padded_groups([[0], [1], [2], [3]], lengths, 16) == [[1, 3], [2, 0]]
    assert padded_groups([[0], [1], [2], [3]], lengths, 32) == [[1, 3, 2, 0]]  # four rows of 8
    assert padded_groups([[0], [1], [2], [3]], lengths, 31) == [[1, 3, 2], [0]]
    assert padded_groups([[0], [1]], lengths, 5) == [[1], [0]]  # beyond the budget: alone
    assert padded_groups([], lengths, 5) == []


def test_pairs_stay_whole() -> None:
    assert padded_groups([[0, 1], [2, 3]], [2, 6, 3, 5], 12) == [[0, 1], [2, 3]]  # two rows of 6, two of 5


def test_there_is_a_group_for_each_process_where_there_are_units() -> None:
    units = [[row] for row in range(4)]
    assert padded_groups(units, [4, 4, 4, 4], 100, num_shares=2) == [[0, 1], [2, 3]]
    assert padded_groups(units, [4, 4, 4, 4], 100, num_shares=3) == [[0], [1], [2, 3]]
    assert padded_groups(units, [4, 4, 4, 4], 100, num_shares=9) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("budget", [12, 30, 1000])
def test_padded_micro_batches_hold_every_sequence_once_and_share_nothing(budget: int) -> None:
    random = np.random.default_rng(0)
    sequences = [
        TrainingSequence([1, 2, 3, *random.integers(5, 90, size).tolist()], [(1, 3 + size)], pair=row // 2)
        for row, size in enumerate([1, 9, 4, 4, 2, 6])
    ]
    forests = micro_batches(sequences, budget, padded=True)
    assert sorted(row for forest in forests for row in forest.row.tolist()) == list(range(6))
    assert sum(forest.num_tokens for forest in forests) == sum(len(sequence.ids) for sequence in sequences)
    for forest in forests:
        assert len(forest.row) * (forest.depth.max() + 1) <= max(budget, 2 * 12)  # a pair alone may be more
        pairs = forest.pair.tolist()
        assert all(pairs.count(pair) == 2 for pair in pairs)

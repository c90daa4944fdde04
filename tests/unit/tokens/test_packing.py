"""Micro-batches: budgets by hand, and nothing lost however a batch is split."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches

PROMPT = [1, 2, 3, 4]


def answer(*ids: int, pair: int = -1) -> TrainingSequence:
    return TrainingSequence([*PROMPT, *ids], [(4, 4 + len(ids))], pair=pair, is_chosen=ids[0] < 10)


def test_a_shared_prompt_is_counted_once() -> None:
    three = [answer(5), answer(6), answer(7)]
    assert [f.num_tokens for f in micro_batches(three, 7)] == [7]
    assert [f.num_tokens for f in micro_batches(three, 6)] == [6, 5]
    assert [f.num_tokens for f in micro_batches(three, 14, share=False)] == [10, 5]


def test_a_sequence_beyond_the_budget_stands_alone() -> None:
    forests = micro_batches([answer(5), answer(6, 7, 8), answer(9)], 5)
    assert [f.row.tolist() for f in forests] == [[0], [1], [2]]


def test_pairs_stay_together_although_others_sort_between_them() -> None:
    sequences = [answer(5, pair=0), answer(20, 21, pair=0), answer(6, pair=1), answer(22, pair=1)]
    forests = micro_batches(sequences, 5)
    assert [sorted(f.row.tolist()) for f in forests] == [[0, 1], [2, 3]]
    assert [f.is_chosen.tolist() for f in forests] == [[True, False], [True, False]]


def test_normalisers_are_those_of_the_whole_batch() -> None:
    masked = TrainingSequence([1, 2, 3], [(1, 3)], sample_mask=0.0)
    forests = micro_batches([answer(5), answer(6, 7), masked], 5)
    assert len(forests) > 1
    assert {(f.valid_tokens, f.valid_sequences) for f in forests} == {(3.0, 2.0)}
    forests = micro_batches([answer(5)], 5, valid_tokens=30.0, valid_sequences=7.0)
    assert (forests[0].valid_tokens, forests[0].valid_sequences) == (30.0, 7.0)


def test_what_stands_behind_the_last_trained_token_is_not_computed() -> None:
    forests = micro_batches([TrainingSequence([1, 2, 3, 4, 5], [(1, 2)]), TrainingSequence([7, 8], [])], 100)
    assert [f.tokens.tolist() for f in forests] == [[1, 2]]
    assert forests[0].row.tolist() == [0]  # the sequence without a trained token is left out
    assert micro_batches([], 10) == []


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=6), min_size=1, max_size=8),
    st.integers(1, 20),
    st.booleans(),
)
def test_every_entry_is_in_one_forest_within_the_budget(arrays: list[list[int]], budget: int, share: bool) -> None:
    sequences = [
        TrainingSequence(a, [(1, len(a))], advantage=np.full(len(a) - 1, row, np.float32))
        for row, a in enumerate(arrays)
    ]
    forests = micro_batches(sequences, budget, share=share)
    entries = Counter((int(f.row[s]), float(a)) for f in forests for s, a in zip(f.sequence, f.advantage, strict=True))
    assert entries == {(row, float(row)): len(a) - 1 for row, a in enumerate(arrays)}
    assert all(f.num_tokens <= budget or len(f.row) == 1 for f in forests)
    again = micro_batches(sequences, budget, share=share)
    assert [f.tokens.tolist() for f in again] == [f.tokens.tolist() for f in forests]


@pytest.mark.parametrize("budget", [1, 1000])
def test_identical_siblings_cost_nothing(budget: int) -> None:
    forests = micro_batches([answer(5)] * 3, budget)
    assert sum(len(f.target) for f in forests) == 3
    if budget == 1000:
        assert forests[0].num_tokens == 5
        assert forests[0].target.tolist() == [4, 4, 4]


def test_a_lower_budget_gives_every_process_a_forest() -> None:
    sequences = [answer(number, number) for number in range(10, 14)]
    whole = micro_batches(sequences, 1000)
    shared = micro_batches(sequences, 1000, num_shares=2)
    assert (len(whole), len(shared)) == (1, 2)
    assert sorted(row for forest in shared for row in forest.row.tolist()) == [0, 1, 2, 3]
    assert {forest.valid_tokens for forest in shared} == {whole[0].valid_tokens}

"""Micro-batches: budgets by hand, and nothing lost however a batch is split."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.tokens.forest import TrainingSequence, build_forest
from regimen.tokens.packing import divide, is_computed, micro_batches

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
    assert [f.row.tolist() for f in forests] == [[1], [0], [2]]  # the largest first


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


def of_lengths(*lengths: int) -> list[TrainingSequence]:
    """Sequences that share nothing."""
    return [TrainingSequence([10 * row + 5] * length, [(1, length)]) for row, length in enumerate(lengths)]


def fewest_bins(sizes: tuple[int, ...], budget: int) -> int:
    """By trying everything: the first size goes with each subset of the others that leaves it room."""
    if not sizes:
        return 0
    first, rest = sizes[0], range(1, len(sizes))
    return min(
        1 + fewest_bins(tuple(sizes[i] for i in rest if i not in chosen), budget)
        for count in range(len(sizes))
        for chosen in combinations(rest, count)
        if count == 0 or first + sum(sizes[i] for i in chosen) <= budget
    )


def test_small_ones_fill_what_large_ones_leave() -> None:
    forests = micro_batches(of_lengths(7, 6, 5, 5, 4, 3), 10)
    assert [sorted(f.row.tolist()) for f in forests] == [[0, 5], [1, 4], [2, 3]]  # in order 7 | 6 | 5 5 | 4 3


@given(st.lists(st.integers(2, 12), min_size=1, max_size=7), st.integers(2, 12))
def test_bins_are_within_eleven_ninths_of_the_fewest(lengths: list[int], budget: int) -> None:
    """The bound proven for best fit decreasing: 11/9 of the optimum and 6/9 of a bin."""
    forests = micro_batches(of_lengths(*lengths), budget)
    assert 9 * len(forests) <= 11 * fewest_bins(tuple(lengths), budget) + 6


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=9), st.integers(1, 24))
def test_no_two_micro_batches_fit_into_one(arrays: list[list[int]], budget: int) -> None:
    """So there are at most twice as many as the budget needs, and a prefix is computed twice only where it must be."""
    sequences = [TrainingSequence(array, [(1, len(array))]) for array in arrays]
    forests = micro_batches(sequences, budget)
    for one, other in combinations(forests, 2):
        rows = [*one.row.tolist(), *other.row.tolist()]
        assert build_forest([sequences[row] for row in rows]).num_tokens > budget
    whole = build_forest(sequences).num_tokens
    assert sum(f.num_tokens for f in forests) >= whole
    assert len(forests) == 1 or whole > budget


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=7), min_size=2, max_size=12), st.integers(4, 30))
def test_pairs_are_whole_and_within_the_budget(arrays: list[list[int]], budget: int) -> None:
    sequences = [TrainingSequence(a, [(1, len(a))], pair=row // 2 if row < 8 else -1) for row, a in enumerate(arrays)]
    forests = micro_batches(sequences, budget)
    assert sorted(row for f in forests for row in f.row.tolist()) == list(range(len(arrays)))
    place = {row: number for number, f in enumerate(forests) for row in f.row.tolist()}
    assert all(place[row] == place[row - 1] for row in range(1, min(8, len(arrays)), 2))
    for f in forests:
        is_one_unit = len(f.row) == 1 or (len(f.row) == 2 and f.pair[0] == f.pair[1] >= 0)
        assert f.num_tokens <= budget or is_one_unit
    if build_forest(sequences).num_tokens <= budget:
        assert len(forests) == 1


def test_groups_stay_whole_where_they_fit() -> None:
    """Prompts of 20 behind 10 common tokens, 8 answers of 5: a group adds 60, and 130 hold two of them."""
    system = list(range(100, 110))
    sequences = [
        TrainingSequence([*system, *[200 + group] * 20, *[300 + 8 * group + k] * 5], [(30, 35)])
        for k in range(8)
        for group in range(4)
    ]
    forests = micro_batches(sequences, 130)
    assert [f.num_tokens for f in forests] == [130, 130]
    # 60 hold a prompt of 30 and 6 answers. Two bins of 2 answers that are left over would be 10 + 2 * (20 + 10) = 70.
    assert [f.num_tokens for f in micro_batches(sequences, 60)] == [60] * 4 + [40] * 4


def test_a_chosen_answer_of_several_pairs_stands_once() -> None:
    """Four tokens of prompt, the chosen answer's two, and one of each rejected answer."""
    sequences = [side for pair in range(3) for side in (answer(5, 6, pair=pair), answer(20 + pair, pair=pair))]
    assert [f.num_tokens for f in micro_batches(sequences, 9)] == [9]
    assert len(micro_batches(sequences, 8)) == 2


@given(st.lists(st.integers(2, 30), min_size=1, max_size=20), st.integers(2, 4), st.integers(30, 200))
def test_processes_get_about_equal_shares(lengths: list[int], num_shares: int, budget: int) -> None:
    sequences = of_lengths(*lengths)
    forests = micro_batches(sequences, budget, num_shares=num_shares)
    assert all(f.num_tokens <= budget for f in forests)
    assert sorted(row for f in forests for row in f.row.tolist()) == list(range(len(lengths)))

    def most(sizes: list[int]) -> int:
        return max(sum(sizes[place] for place in share) for share in divide(sizes, num_shares))

    balanced = most([f.num_tokens for f in forests])
    assert balanced <= most([f.num_tokens for f in micro_batches(sequences, budget)])
    assert balanced >= max(-(-sum(lengths) // num_shares), max(lengths))


def test_three_equal_sequences_for_two_processes() -> None:
    """One micro-batch of three would leave a process idle; so would two and one, by as much as one sequence."""
    assert [len(f.row) for f in micro_batches(of_lengths(5, 5, 5, 5), 1000, num_shares=2)] == [2, 2]
    assert sorted(len(f.row) for f in micro_batches(of_lengths(6, 6, 6), 12, num_shares=2)) == [1, 2]


def test_masked_sequences_are_counted_and_not_computed() -> None:
    masked = TrainingSequence([*PROMPT, 8, 9], [(4, 6)], sample_mask=0.0)
    assert not is_computed(masked)
    (forest,) = micro_batches([answer(5), masked, answer(6)], 100)
    assert forest.row.tolist() == [0, 2]
    assert forest.tokens.tolist() == [*PROMPT, 5, 6]
    assert (forest.valid_tokens, forest.valid_sequences) == (2.0, 2.0)
    assert micro_batches([masked], 100) == []

"""The forest against layouts worked out by hand, and against brute force on random sequences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.errors import TokenError
from regimen.tokens.forest import Forest, TrainingSequence, build_forest, common_prefix, normalisers

# Three levels of branching, one sequence twice, one that ends inside another's path, and a second tree.
BRANCHING = [
    TrainingSequence([1, 2, 3, 4], [(2, 4)]),  # a
    TrainingSequence([1, 2, 3, 5], [(3, 4)]),  # b leaves a behind 3
    TrainingSequence([1, 2, 6], [(2, 3)]),  # c leaves behind 2
    TrainingSequence([1, 7], [(1, 2)]),  # d leaves behind 1
    TrainingSequence([1, 2, 3, 4], [(1, 3)]),  # e: a again, other spans
    TrainingSequence([1, 2], [(1, 2)]),  # f ends inside the path of a
    TrainingSequence([8, 2, 3], [(1, 3)]),  # g: another tree
]


def lists(forest: Forest, *names: str) -> list[list[int]]:
    return [getattr(forest, name).tolist() for name in names]


def test_layout_by_hand() -> None:
    forest = build_forest(BRANCHING)
    tokens, depth, parent, end = lists(forest, "tokens", "depth", "parent", "end")
    assert tokens == [1, 2, 3, 4, 5, 6, 7, 8, 2, 3]
    assert depth == [0, 1, 2, 3, 3, 2, 1, 0, 1, 2]
    assert parent == [-1, 0, 1, 2, 2, 1, 0, -1, 7, 8]
    assert end == [7, 6, 5, 4, 5, 6, 7, 10, 10, 10]


def test_entries_by_hand() -> None:
    forest = build_forest(BRANCHING)
    target, sequence, num_trained = lists(forest, "target", "sequence", "num_trained")
    assert target == [2, 3, 4, 5, 6, 1, 2, 1, 8, 9]  # shared targets stand once per sequence, never merged
    assert sequence == [0, 0, 1, 2, 3, 4, 4, 5, 6, 6]
    assert num_trained == [2, 1, 1, 1, 2, 1, 2]


def test_columns_keep_the_order_of_sequences_and_default_to_zero() -> None:
    values = np.array([0.5, -0.5], np.float32)
    forest = build_forest(
        [
            TrainingSequence([3, 1, 1], [(1, 3)], episode=4, sampled_logprob=values),
            TrainingSequence([2, 1], [(1, 2)], episode=5, pair=9, is_chosen=True, sample_mask=0.0),
        ],
        rows=[11, 12],
        valid_tokens=20.0,
    )
    assert forest.tokens.tolist() == [2, 1, 3, 1, 1]  # laid out by id, not by order
    assert forest.target.tolist() == [3, 4, 1]
    assert forest.sampled_logprob.tolist() == [0.5, -0.5, 0.0]
    assert forest.weight.tolist() == [1.0, 1.0, 0.0]
    assert forest.advantage.tolist() == [0.0] * 3
    assert [forest.row.tolist(), forest.episode.tolist(), forest.pair.tolist()] == [[11, 12], [4, 5], [-1, 9]]
    assert forest.is_chosen.tolist() == [False, True]
    assert (forest.valid_tokens, forest.valid_sequences) == (20.0, 1.0)  # given, and counted


def test_without_sharing_every_sequence_is_a_tree() -> None:
    forest = build_forest([TrainingSequence([1, 2], [(1, 2)])] * 2, share=False)
    assert lists(forest, "tokens", "depth", "parent", "end") == [
        [1, 2, 1, 2],
        [0, 1, 0, 1],
        [-1, 0, -1, 2],
        [2, 2, 4, 4],
    ]
    assert forest.target.tolist() == [1, 3]


def test_normalisers_weigh_by_the_sample_mask() -> None:
    sequences = [TrainingSequence([1, 2, 3], [(1, 3)]), TrainingSequence([1, 2], [(1, 2)], sample_mask=0.0)]
    assert normalisers(sequences) == (2.0, 1.0)
    assert normalisers([]) == (0.0, 0.0)


def test_large_and_small_ids_are_ordered_as_numbers() -> None:
    ids = [255, 256, 65_536, 1]
    forest = build_forest([TrainingSequence([i], []) for i in ids])
    assert forest.tokens.tolist() == [1, 255, 256, 65_536]


@pytest.mark.parametrize(
    "sequence, message",
    [
        (TrainingSequence([], []), "holds no token"),
        (TrainingSequence([1, 2], [(0, 1)]), "trains its first token"),
        (TrainingSequence([1, 2], [(1, 3)]), "past 2 tokens"),
        (TrainingSequence([1, 2], [(1, 1)]), "is empty"),
        (TrainingSequence([1, 2, 3, 4], [(2, 4), (1, 2)]), "out of order"),
        (TrainingSequence([1, 2, 3], [(1, 3)], advantage=np.ones(3, np.float32)), "advantage has 3 values for 2"),
    ],
)
def test_refusals_name_the_sequence(sequence: TrainingSequence, message: str) -> None:
    with pytest.raises(TokenError, match=message) as caught:
        build_forest([TrainingSequence([1], []), sequence])
    assert caught.value.where == "training sequence 1"


def test_common_prefix() -> None:
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([], np.int64), np.array([1])) == 0


ids = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@given(st.lists(ids, min_size=1, max_size=8), st.booleans())
def test_any_forest_spells_its_sequences(arrays: list[list[int]], share: bool) -> None:
    sequences = [TrainingSequence(a, [(1, len(a))] if len(a) > 1 else []) for a in arrays]
    forest = build_forest(sequences, share=share)
    for row, array in enumerate(arrays):
        targets = forest.target[forest.sequence == row]
        assert len(targets) == len(array) - 1
        if len(targets):
            path = forest.path(int(targets[-1]))
            assert forest.tokens[path].tolist() == array
            assert path[1:].tolist() == targets.tolist()
    prefixes = {tuple(a[:size]) for a in arrays for size in range(1, len(a) + 1)}
    assert forest.num_tokens == (len(prefixes) if share else sum(map(len, arrays)))  # a prefix stands once


@given(st.lists(ids, min_size=1, max_size=8))
def test_any_forest_sees_ancestors_and_itself(arrays: list[list[int]]) -> None:
    forest = build_forest([TrainingSequence(a, []) for a in arrays])
    visible = forest.visible()
    for token in range(forest.num_tokens):
        path = forest.path(token)
        assert np.flatnonzero(visible[token]).tolist() == path.tolist()
        assert forest.depth[token] == len(path) - 1
        below = np.flatnonzero(visible[:, token])  # the subtree is contiguous and ends at `end`
        assert below.tolist() == list(range(token, int(forest.end[token])))

"""Figures of a stream against those of all its numbers together."""

import math

import pytest

from regimen.rollouts.moments import CHUNK, Moments, Summary, merged, summarize


def test_two_sets_together_by_hand():
    # 0, 2 and 6, 8, 10: mean 26 / 5, squares 0 + 4 + 36 + 64 + 100
    found = merged(summarize([0, 2]), summarize([6, 8, 10]))
    assert (found.count, found.min, found.max) == (5, 0.0, 10.0)
    assert found.mean == pytest.approx(5.2)
    assert found.sd == pytest.approx(math.sqrt(204 / 5 - 5.2**2))
    assert merged(found, summarize([])) == merged(summarize([]), found) == found


def test_a_stream_longer_than_a_chunk():
    moments = Moments()
    numbers = [float(value % 7) for value in range(3 * CHUNK + 5)]
    for value in numbers:
        moments.add(value)
    found, whole = moments.summary(), summarize(numbers)
    assert (found.count, found.min, found.max) == (3 * CHUNK + 5, 0.0, 6.0)
    assert (found.mean, found.sd) == (pytest.approx(whole.mean, rel=1e-12), pytest.approx(whole.sd, rel=1e-12))


def test_equal_numbers_have_no_spread_across_chunks():
    moments = Moments()
    for _ in range(CHUNK + 1):
        moments.add(0.1)
    assert moments.summary() == Summary(CHUNK + 1, 0.1, 0.0, 0.1, 0.1)
    assert Moments().summary() == Summary(0, 0.0, 0.0, 0.0, 0.0)


def test_numbers_whose_squares_fit_no_float():
    assert merged(summarize([1e300]), summarize([3e300])) == Summary(2, 2e300, 1e300, 1e300, 3e300)

import math
import random

import pytest

from regimen.evaluation.intervals import (
    agresti_min_interval,
    incomplete_beta,
    mean_interval,
    mean_of,
    paired_interval,
    student_t_distribution,
    student_t_quantile,
    wilson_interval,
)


# Printed tables of the t distribution, and closed forms for one and two degrees of freedom.
@pytest.mark.parametrize(
    "probability, degrees, expected",
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 4, 2.77645),
        (0.975, 9, 2.26216),
        (0.975, 30, 2.04227),
        (0.975, 120, 1.97993),
        (0.975, 1_000_000, 1.95997),
        (0.95, 10, 1.81246),
        (0.995, 5, 4.03214),
        (0.5, 7, 0.0),
        (0.025, 9, -2.26216),
    ],
)
def test_t_quantiles_equal_the_tables(probability, degrees, expected):
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("x", [-3.0, -0.2, 0.0, 0.7, 5.0, 40.0])
def test_t_distribution_equals_closed_forms(x):
    assert student_t_distribution(x, 1) == pytest.approx(0.5 + math.atan(x) / math.pi, abs=1e-12)
    assert student_t_distribution(x, 2) == pytest.approx(0.5 + x / (2 * math.sqrt(2 + x * x)), abs=1e-12)


def test_incomplete_beta_equals_polynomials():
    assert incomplete_beta(0.3, 1, 1) == pytest.approx(0.3, abs=1e-14)
    assert incomplete_beta(0.3, 2, 1) == pytest.approx(0.09, abs=1e-14)
    assert incomplete_beta(0.8, 2, 2) == pytest.approx(3 * 0.64 - 2 * 0.512, abs=1e-14)
    assert incomplete_beta(0.0, 2, 2) == 0.0
    assert incomplete_beta(1.0, 2, 2) == 1.0


@pytest.mark.parametrize("probability, degrees", [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_quantiles_that_do_not_exist_are_refused(probability, degrees):
    with pytest.raises(ValueError, match="no t quantile"):
        student_t_quantile(probability, degrees)


def test_mean_interval_by_hand():
    # Mean 2.5; squares 2.25 + 0.25 + 0.25 + 2.25 = 5; error sqrt(5 / (4 * 3)); t(3) = 3.182446.
    interval = mean_interval([1.0, 2.0, 3.0, 4.0], is_unit=False)
    assert interval.method == "t"
    assert interval.standard_error == pytest.approx(0.6454972)
    assert interval.low == pytest.approx(2.5 - 3.182446 * 0.6454972, abs=1e-5)
    assert interval.high == pytest.approx(2.5 + 3.182446 * 0.6454972, abs=1e-5)


def test_one_task_and_equal_values_have_no_interval():
    assert mean_interval([1.0], is_unit=True).method == "none"
    assert mean_interval([0.7, 0.7, 0.7], is_unit=False).low is None
    assert paired_interval([1.0], is_binary=True).method == "none"
    assert paired_interval([0.1, 0.1, 0.1], is_binary=False).method == "none"


@pytest.mark.parametrize("num_tasks", [5, 200])
def test_all_ones_are_no_certainty(num_tasks):
    # Wilson at p = 1 is [n / (n + t^2), 1]; at 0 its mirror image.
    t = student_t_quantile(0.975, num_tasks - 1)
    ones, zeros = (mean_interval([value] * num_tasks, is_unit=True) for value in (1.0, 0.0))
    assert (ones.method, ones.high) == ("wilson", 1.0)
    assert ones.low == pytest.approx(num_tasks / (num_tasks + t * t))
    assert zeros.low == 0.0
    assert zeros.high == pytest.approx(1 - ones.low)


def test_one_miss_in_200_is_no_surer_than_none():
    one_miss = mean_interval([1.0] * 199 + [0.0], is_unit=True)
    no_miss = mean_interval([1.0] * 200, is_unit=True)
    assert one_miss.method == "wilson"
    assert one_miss.low < no_miss.low
    assert one_miss.high < 1


def test_wilson_equals_its_formula():
    # p = 0.5, n = 10, t(9) = 2.262157: half = t / (1 + t^2/n) * sqrt(p(1-p)/n + t^2/(4 n^2)).
    t = 2.262157
    half = t / (1 + t * t / 10) * math.sqrt(0.025 + t * t / 400)
    interval = wilson_interval(0.5, 0.0, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))


def test_agresti_min_by_hand():
    # Three wins, one loss, four ties: (3 - 1) / 10 = 0.2; squares 4 + 1 = 5; error sqrt(5 - 10 * 0.04) / 10.
    interval = agresti_min_interval([1, 1, 1, -1, 0, 0, 0, 0])
    error = math.sqrt(4.6) / 10
    assert interval.standard_error == pytest.approx(error)
    assert interval.low == pytest.approx(0.2 - 2.364624 * error, abs=1e-6)
    assert interval.high == pytest.approx(0.2 + 2.364624 * error, abs=1e-6)


def test_four_wins_in_200_are_no_proof():
    # The exact sign test gives p = 0.125; a plain t interval would exclude 0.
    few = paired_interval([1.0] * 4 + [0.0] * 196, is_binary=True)
    assert few.method == "agresti-min"
    assert not few.excludes_zero
    assert paired_interval([1.0] * 6 + [0.0] * 194, is_binary=True).excludes_zero


def test_identical_models_have_an_interval_with_width():
    interval = paired_interval([0.0] * 200, is_binary=True)
    assert interval.low < 0 < interval.high


def test_intervals_stay_in_range():
    interval = paired_interval([1.0] * 3, is_binary=True)
    assert interval.high == 1.0
    assert not interval.excludes_zero or interval.low > 0


@pytest.mark.parametrize("chance, most", [(0.3, 0.98), (0.5, 0.98), (0.97, 1.0)])
def test_the_interval_covers_the_truth_in_about_95_of_100_samples(chance, most):
    # Clusters: the tasks' own chances vary, repeats vary from 1 to 4.
    source, covered, trials = random.Random(7), 0, 400
    for _ in range(trials):
        means = []
        for task in range(60):
            own = min(1.0, max(0.0, chance + source.choice([-0.03, 0.03])))
            repeats = 1 + task % 4
            means.append(mean_of([float(source.random() < own) for _ in range(repeats)]))
        interval = mean_interval(means, is_unit=True)
        covered += interval.low <= chance <= interval.high
    assert 0.92 <= covered / trials <= most

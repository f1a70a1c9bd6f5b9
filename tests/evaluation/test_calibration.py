"""Brier score and calibration error against loops over exact fractions, and by hand."""

import math
import random
from dataclasses import astuple
from fractions import Fraction

import pytest

from trl_fork.evaluation import brier_score, expected_calibration_error, reliability_bins


def naive_brier(forecasts, outcomes):
    return float(sum((p - y) ** 2 for p, y in zip(forecasts, outcomes, strict=True)) / len(forecasts))


def naive_bins(forecasts, outcomes, num_bins):
    """The pairs of each bin of equal width, the last one closed above."""
    bins = [[] for _ in range(num_bins)]
    for p, y in zip(forecasts, outcomes, strict=True):
        for k in range(num_bins):
            if Fraction(k, num_bins) <= p < Fraction(k + 1, num_bins) or (k == num_bins - 1 and p == 1):
                bins[k].append((p, y))
    return bins


def naive_ece(forecasts, outcomes, num_bins):
    total = Fraction(0)
    for own in naive_bins(forecasts, outcomes, num_bins):
        if own:
            mean_p, mean_y = sum(p for p, _ in own) / len(own), Fraction(sum(y for _, y in own), len(own))
            total += Fraction(len(own), len(forecasts)) * abs(mean_p - mean_y)
    return float(total)


@pytest.mark.parametrize("num_bins", [1, 3, 10, 17])
@pytest.mark.parametrize("size", [1, 7, 500])
def test_against_naive_loops(size, num_bins):
    rng = random.Random(size)
    forecasts = [Fraction(rng.randint(0, 100), 100) for _ in range(size)]  # many on an edge
    outcomes = [rng.randint(0, 1) for _ in range(size)]
    floats = [float(p) for p in forecasts]
    assert brier_score(floats, outcomes) == pytest.approx(naive_brier(forecasts, outcomes), abs=1e-12)
    expected = naive_ece(forecasts, outcomes, num_bins)
    assert expected_calibration_error(floats, outcomes, num_bins) == pytest.approx(expected, abs=1e-12)
    counts = [len(own) for own in naive_bins(forecasts, outcomes, num_bins) if own]
    assert [b.count for b in reliability_bins(floats, outcomes, num_bins)] == counts


def test_by_hand():
    forecasts, outcomes = [0.9, 0.9, 0.2, 0.25], [1, 0, 0, 1]
    assert brier_score(forecasts, outcomes) == pytest.approx((0.01 + 0.81 + 0.04 + 0.5625) / 4)
    # Bins of ten: 0.2 and 0.25 have a mean of 0.225 and a rate of 0.5; twice 0.9 has a rate of 0.5.
    assert expected_calibration_error(forecasts, outcomes) == pytest.approx(0.5 * 0.275 + 0.5 * 0.4)
    low, high = reliability_bins(forecasts, outcomes)
    assert astuple(low) == (0.2, 0.3, 2, 0.225, 0.5) and astuple(high) == (0.9, 1.0, 2, 0.9, 0.5)


def test_edges_belong_to_the_bin_above_and_one_to_the_last():
    edges = [k / 10 for k in range(11)]
    assert [(b.low, b.count) for b in reliability_bins(edges, [0] * 11)] == [
        *((k / 10, 1) for k in range(9)),
        (0.9, 2),
    ]


def test_perfect_and_constant_forecasts():
    assert brier_score([0, 1, 1], [0, 1, 1]) == expected_calibration_error([0, 1, 1], [0, 1, 1]) == 0
    assert brier_score([0.5] * 4, [0, 1, 0, 1]) == 0.25
    assert expected_calibration_error([0.5] * 4, [0, 1, 0, 1]) == 0  # the base rate, which says nothing
    assert brier_score([0.25], [0.75]) == 0.25  # a rate in the place of an outcome


@pytest.mark.parametrize(
    ("forecasts", "outcomes", "message"),
    [
        ([], [], "at least one"),
        ([0.5], [0, 1], "as many outcomes as forecasts"),
        ([[0.5]], [[1]], "as many outcomes as forecasts"),
        ([0.5, 73], [0, 1], "forecasts must be in .0, 1.; number 1 is 73.0"),
        ([0.5, math.nan], [0, 1], "forecasts must be in .0, 1.; number 1 is nan"),
        ([0.5, 0.5], [0, -1], "outcomes must be in .0, 1.; number 1 is -1.0"),
        ([0.5, None], [0, 1], "forecasts must be in .0, 1.; number 1 is nan"),
    ],
)
def test_bad_input(forecasts, outcomes, message):
    for function in (brier_score, expected_calibration_error, reliability_bins):
        with pytest.raises(ValueError, match=message):
            function(forecasts, outcomes)


def test_no_bins():
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        expected_calibration_error([0.5], [1], 0)

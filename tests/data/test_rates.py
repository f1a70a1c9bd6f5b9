"""Hierarchical rates against the recursion written out, row by row, and by hand."""

import random
from bisect import bisect_right
from fractions import Fraction

import pytest

from trl_fork.data import HierarchicalRates


# Bins of arXiv 2607.00164 for games of American football, its first two features
MARGIN = (-21, -14, -10, -7, -4, -1, 0, 1, 4, 7, 10, 14, 21)
SECONDS = (120, 300, 600, 900, 1800, 2700)


def naive_rate(rows, outcomes, row, features, strength):
    """The rate of a row: count the rows that share its first L bins, from L = 0, until there are none."""

    def bins(row, level):
        return [
            v if edges is None else bisect_right(edges, v) for v, edges in zip(row, features[:level], strict=False)
        ]

    rate = Fraction(sum(outcomes), len(outcomes))
    for level in range(1, len(features) + 1):
        own = [y for other, y in zip(rows, outcomes, strict=True) if bins(other, level) == bins(row, level)]
        if not own:
            break
        rate = (sum(own) + strength * rate) / (len(own) + strength)
    return float(rate)


@pytest.mark.parametrize("strength", [25, 3])
def test_against_the_recursion(strength):
    rng = random.Random(0)
    edges = [(-4, 0, 4), (300, 900), None]
    names = ("margin", "seconds", "team")

    def draw(number):
        values = [
            (rng.randint(-8, 8), rng.choice([0, 300, 600, 900, 1200]), rng.choice("abcdef")) for _ in range(number)
        ]
        return values, [dict(zip(names, value, strict=True)) for value in values]

    values, rows = draw(150)
    outcomes = [rng.randint(0, 1) for _ in rows]
    new_values, new_rows = draw(60)
    new_values.append((0, 0, "z"))
    new_rows.append({"margin": 0, "seconds": 0, "team": "z"})
    rates = HierarchicalRates(dict(zip(names, edges, strict=True)), strength=strength).fit(rows, outcomes)
    expected = [naive_rate(values, outcomes, value, edges, strength) for value in values + new_values]
    assert rates.predict(rows + new_rows) == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 40


def test_by_hand():
    """Strength 25, as the paper's: three of four rows won."""
    rows = [{"margin": 3, "seconds": 100}] * 2 + [{"margin": 3, "seconds": 1000}, {"margin": -5, "seconds": 100}]
    rates = HierarchicalRates({"margin": MARGIN, "seconds": SECONDS}).fit(rows, [1, 1, 1, 0])
    ahead = (3 + 25 * 0.75) / (3 + 25)
    ahead_late = (2 + 25 * ahead) / (2 + 25)
    behind = (0 + 25 * 0.75) / (1 + 25)
    found = rates.predict(
        [
            {"margin": 1, "seconds": 0},  # 1 <= margin < 4, and less than 120 seconds
            {"margin": 3, "seconds": 130},  # no row had such a time: the rate of its margin
            {"margin": -5, "seconds": 5000},
            {"margin": 20, "seconds": 100},  # no row had such a margin: the rate of all
        ]
    )
    assert found == pytest.approx([ahead_late, ahead, behind, 0.75], abs=1e-15)


def test_an_edge_belongs_to_the_bin_above():
    rates = HierarchicalRates({"margin": MARGIN, "seconds": SECONDS})
    assert rates.cell({"margin": -21, "seconds": 119.9}) == (1, 0)
    assert rates.cell({"margin": -22, "seconds": 120}) == (0, 1)
    assert rates.cell({"margin": 0, "seconds": 2700}) == (7, 6)
    assert rates.cell({"margin": 21, "seconds": 0}) == (13, 0)


def test_fitting_again_forgets():
    rates = HierarchicalRates({"x": None}).fit([{"x": 1}, {"x": 2}], [1, 1])
    rates.fit([{"x": 1}], [0])
    assert rates.predict([{"x": 1}, {"x": 2}]) == [0, 0]


@pytest.mark.parametrize(
    ("rows", "outcomes", "message"),
    [
        ([], [], "Expected one outcome per row, and a row; got 0 for 0 rows"),
        ([{"x": 1}], [1, 0], "got 2 for 1 rows"),
        ([{"x": 1}, {"x": 1}], [1, None], r"outcomes: row 1: None is not a number in \[0, 1\]"),
        ([{"x": 1}], [float("nan")], "outcomes: row 0: nan"),
        ([{"x": 1}], [2], "outcomes: row 0: 2"),
        ([{"y": 1}], [1], "column 'x': the value is None, in the row {'y': 1}"),
        ([{"x": float("nan")}], [1], "column 'x': the value is nan"),
        ([{"x": "3"}], [1], "column 'x': '3' is no number"),
    ],
)
def test_bad_rows(rows, outcomes, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalRates({"x": (0, 1)}).fit(rows, outcomes)


def test_bad_settings():
    for features, strength, message in (
        ({}, 25, "features: there must be at least one"),
        ({"x": (1, 0)}, 25, "the edges of 'x' must ascend"),
        ({"x": (1, 1)}, 25, "the edges of 'x' must ascend"),
        ({"x": (0, 1)}, 0, "strength must be above 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            HierarchicalRates(features, strength=strength)
    with pytest.raises(RuntimeError, match="call fit"):
        HierarchicalRates({"x": None}).predict([{"x": 1}])

"""The change of entropy by token type against sums written by hand, and the coverage of its intervals."""

import math
import random
import statistics
from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import t as student

from trl_fork.analysis.token_change import entropy_change


def draw(seed=0, problems=7, tokens=400, types=9):
    """Tokens of uneven problems, whose changes share a part within a problem."""
    rng = random.Random(seed)
    shared = [rng.gauss(0, 0.2) for _ in range(problems)]
    ids, numbers, before, after = [], [], [], []
    for _ in range(tokens):
        number = min(int(rng.expovariate(0.5)), problems - 1)
        kind = min(int(rng.expovariate(0.4)), types - 1)
        first = rng.uniform(0, 3)
        ids.append(kind * 3 + 1)
        numbers.append(number)
        before.append(first)
        after.append(max(first + 0.2 * kind + shared[number] + rng.gauss(0, 0.1), 0.0))
    return np.array(ids), np.float32(before), np.float32(after), np.array(numbers)


def naive(rows, comparisons):
    """Mean and interval of (problem, before, after), by the formula of clusters of unequal size."""
    changes = [float(after) - float(before) for _, before, after in rows]
    mean = sum(changes) / len(changes)
    residuals = defaultdict(float)
    for (problem, _, _), change in zip(rows, changes, strict=True):
        residuals[problem] += change - mean
    groups = len(residuals)
    if groups < 2:
        return mean, None, None
    error = math.sqrt(groups / (groups - 1) * sum(r**2 for r in residuals.values())) / len(changes)
    width = student.ppf(1 - 0.025 / comparisons, groups - 1) * error
    return mean, mean - width, mean + width


def test_numbers_are_those_of_sums_by_hand():
    ids, before, after, problems = draw()
    # A type that only one problem has, and one that is seen too seldom
    ids[:3], problems[:3] = 99, 2
    ids[3] = 98
    found = entropy_change(ids, before, after, problems, min_count=2)
    rows = defaultdict(list)
    for kind, *row in zip(ids.tolist(), problems.tolist(), before, after, strict=True):
        rows[kind].append(row)
    listed = {kind: group for kind, group in rows.items() if len(group) > 2}
    assert len(listed) < len(rows) and 98 not in listed and 99 in listed
    assert {row["token_id"] for row in found["types"]} == set(listed)
    for row in found["types"]:
        group = listed[row["token_id"]]
        mean, low, high = naive(group, len(listed))
        assert row["count"] == len(group) and row["num_problems"] == len({problem for problem, _, _ in group})
        assert row["mean_before"] == pytest.approx(statistics.mean(float(b) for _, b, _ in group))
        assert row["mean_after"] == pytest.approx(statistics.mean(float(a) for _, _, a in group))
        assert row["mean_change"] == pytest.approx(mean, abs=1e-12)
        if low is None:
            assert row["low"] is row["high"] is None and row["resolved"] is False
        else:
            assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-9)
            assert row["resolved"] == (low > 0 or high < 0)
    assert [row["mean_change"] for row in found["types"]] == sorted(naive(g, 1)[0] for g in listed.values())[::-1]
    assert len({row["resolved"] for row in found["types"]}) == 2, "both kinds are there"
    mean, low, high = naive([row for group in rows.values() for row in group], 1)
    overall = found["all"]
    assert (overall["mean_change"], overall["low"], overall["high"]) == pytest.approx((mean, low, high), abs=1e-9)
    assert (found["num_tokens"], found["num_problems"]) == (400, 7)


def test_another_order_of_the_tokens_changes_nothing():
    arrays = draw(1)
    order = np.random.default_rng(0).permutation(len(arrays[0]))
    first, second = entropy_change(*arrays, 5), entropy_change(*(values[order] for values in arrays), 5)
    for row, other in zip(first["types"], second["types"], strict=True):
        assert row == pytest.approx(other, abs=1e-9)


def test_intervals_hold_for_all_types_together():
    """Without any true change, no more than 5 % of the experiments find one in any type of dependent tokens."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        problems = np.repeat(np.arange(30), 20)
        ids = rng.integers(0, 8, 600)
        before = rng.uniform(1, 2, 600)
        # A type's change is the same throughout a problem, so that its tokens tell no more than one would.
        shared = rng.normal(0, 0.3, (30, 8))
        found = entropy_change(ids, before, before + shared[problems, ids], problems, 10)
        false += any(row["resolved"] for row in found["types"])
    assert false <= 20  # 10 expected; intervals of independent tokens find one in nearly all


def test_no_tokens():
    empty = np.zeros(0, dtype=np.int64)
    found = entropy_change(empty, empty.astype("f4"), empty.astype("f4"), empty, 0)
    assert found["types"] == [] and found["num_tokens"] == 0

"""Forks per loop: the pure functions against sets and sums over single tokens."""

import math
from fractions import Fraction

import numpy as np
import pytest

from trl_fork.analysis.loops import exit_summary, expected_depth, loop_summary, moved_forks, token_table


LENGTHS = np.array([4, 0, 9, 1, 23])
NUM_LOOPS = 3


@pytest.fixture
def entropies():
    return np.random.default_rng(0).exponential(size=(NUM_LOOPS, LENGTHS.sum())).astype(np.float32)


def top(values, fraction):
    """Indices of the largest values; ties to the earlier."""
    count = math.ceil(Fraction(str(fraction)) * len(values))
    return set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_loops_against_sets(entropies, fraction):
    rows = [row.tolist() for row in entropies]
    starts = np.cumsum(LENGTHS) - LENGTHS
    for number, (found, row) in enumerate(zip(loop_summary(entropies, LENGTHS, fraction), rows, strict=True)):
        assert found["loop"] == number + 1
        assert found["mean_entropy"] == pytest.approx(sum(row) / len(row))
        ordered = sorted(row)
        for name, level in (("p50", 50), ("p80", 80), ("p95", 95)):
            assert found[name] == pytest.approx(ordered[-(-level * len(row) // 100) - 1])
        assert found["fraction_below_0.01"] == sum(value < 0.01 for value in row) / len(row)
        last = top(rows[-1], fraction)
        assert found["overlap_with_last"]["whole_set"] == len(top(row, fraction) & last) / len(last)
        pairs = [
            (top(row[s : s + n], fraction), top(rows[-1][s : s + n], fraction))
            for s, n in zip(starts, LENGTHS, strict=True)
        ]
        shared = sum(len(a & b) for a, b in pairs) / sum(len(b) for _, b in pairs)
        assert found["overlap_with_last"]["per_response"] == pytest.approx(shared)
    assert found["overlap_with_last"] == {"whole_set": 1.0, "per_response": 1.0}


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_moved_forks_against_sets(entropies, fraction):
    entropies[0, :3] = entropies[0].max() + 1  # ties among the selected
    first, last = top(entropies[0].tolist(), fraction), top(entropies[-1].tolist(), fraction)
    moved = moved_forks(entropies, fraction)
    assert set(np.flatnonzero(moved["resolved"]).tolist()) == first - last
    assert set(np.flatnonzero(moved["late"]).tolist()) == last - first
    assert moved["resolved"].sum() == moved["late"].sum()


def test_token_table_counts_types(entropies):
    ids = np.random.default_rng(1).integers(5, 11, entropies.shape[1])
    chosen = moved_forks(entropies, 0.5)["late"]
    table = token_table(ids, entropies, chosen, num_listed=100)
    assert [(-row["count"], row["token_id"]) for row in table] == sorted(
        (-int((ids[chosen] == token).sum()), token) for token in set(ids[chosen].tolist())
    )
    for row in table:
        places = [i for i in range(len(ids)) if chosen[i] and ids[i] == row["token_id"]]
        assert row["count"] == len(places)
        assert row["share"] == len(places) / sum(token == row["token_id"] for token in ids.tolist())
        assert row["mean_entropy_first"] == pytest.approx(sum(map(float, entropies[0, places])) / len(places))
        assert row["mean_entropy_last"] == pytest.approx(sum(map(float, entropies[-1, places])) / len(places))
    assert token_table(ids, entropies, chosen, num_listed=2) == table[:2]
    assert token_table(ids, entropies, np.zeros(len(ids), dtype=bool), num_listed=2) == []


def test_exit_depth_against_single_tokens(entropies):
    num_tokens = entropies.shape[1]
    probs = np.random.default_rng(2).dirichlet([1.0] * NUM_LOOPS, num_tokens).T.astype(np.float32)
    depths = [sum((t + 1) * float(probs[t, i]) for t in range(NUM_LOOPS)) for i in range(num_tokens)]
    np.testing.assert_allclose(expected_depth(probs), depths, rtol=1e-6)
    found = exit_summary(probs, entropies, num_bins=4)
    assert found["probabilities"] == pytest.approx([sum(map(float, row)) / num_tokens for row in probs], rel=1e-5)
    assert found["mean_depth"] == pytest.approx(sum(depths) / num_tokens)

    def ranks(values):
        return [sum(other < value for other in values) for value in values]  # without ties

    for name, row in (("first_loop", entropies[0]), ("last_loop", entropies[-1])):
        correlation = np.corrcoef(ranks(depths), ranks(row.tolist()))[0, 1]
        assert found["spearman_with_entropy"][name] == pytest.approx(correlation)
    ordered = sorted(range(num_tokens), key=lambda i: entropies[-1, i])
    for number, part in enumerate(found["bins"]):
        tokens = ordered[number * num_tokens // 4 : (number + 1) * num_tokens // 4]
        assert part["num_tokens"] == len(tokens)
        assert part["mean_depth"] == pytest.approx(sum(depths[i] for i in tokens) / len(tokens), rel=1e-5)
        assert part["mean_entropy"] == pytest.approx(sum(float(entropies[-1, i]) for i in tokens) / len(tokens))


def test_few_tokens_and_a_constant_gate():
    one = np.float32([[0.5], [0.25]])
    assert loop_summary(one, np.array([1]))[0]["overlap_with_last"] == {"whole_set": 1.0, "per_response": 1.0}
    assert not moved_forks(one)["resolved"].any()
    found = exit_summary(np.float32([[0.25], [0.75]]), one)
    assert found["mean_depth"] == 1.75 and len(found["bins"]) == 1
    assert math.isnan(found["spearman_with_entropy"]["last_loop"])
    constant = exit_summary(np.full((2, 7), 0.5, np.float32), np.random.default_rng(0).random((2, 7)))
    assert math.isnan(constant["spearman_with_entropy"]["last_loop"]) and constant["mean_depth"] == 1.5
    with pytest.raises(ValueError, match="do not belong to the same tokens"):
        loop_summary(one, np.array([2]))

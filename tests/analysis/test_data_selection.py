"""Scores, orders and strata of responses against naive Python."""

import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_fork.analysis import data_selection


# Few values, so that there are ties
ENTROPIES = st.lists(st.sampled_from([0.0, 0.0, 0.005, 0.5, 0.672, 1.25, 3.5]), max_size=300)
LENGTHS = st.lists(st.integers(0, 12) | st.integers(0, 10**6), max_size=80)


def as_float32(values):
    return np.array(values, dtype=np.float32)


def strata_of(lengths, match_length=True, pools=None, candidates=None, **size):
    pools = ["" for _ in lengths] if pools is None else pools
    candidates = range(len(lengths)) if candidates is None else candidates
    return data_selection.make_strata(pools, lengths, candidates, match_length=match_length, **size)


# ---------------------------------------------------------------------- scores


@given(ENTROPIES, st.sampled_from([0.005, 0.2, 0.55, 1.0]))
def test_scores_of_the_top_tokens(values, share):
    entropies = as_float32(values)
    top = sorted(values, reverse=True)[: math.ceil(Fraction(str(share)) * len(values))]

    def found(score, **how):
        return data_selection.response_score(entropies, score, **how)

    assert found("high_entropy_sum", top_tokens=share) == pytest.approx(sum(top), rel=1e-6)
    assert found("high_entropy_mean", top_tokens=share) == pytest.approx(sum(top) / len(top) if top else 0, rel=1e-6)
    assert found("entropy_sum") == pytest.approx(sum(values), rel=1e-6)
    assert found("length") == len(values)


@given(ENTROPIES, st.sampled_from([0.0, 0.005, 0.5, 0.6, 3.5, 9.0]))
def test_scores_above_a_threshold(values, threshold):
    stored = [float(np.float32(value)) for value in values]  # 0.005 is 0.004999999888
    above = [value for value in stored if value > threshold]
    how = {"entropy_threshold": threshold}
    total = data_selection.response_score(as_float32(values), "high_entropy_sum", **how)
    mean = data_selection.response_score(as_float32(values), "high_entropy_mean", **how)
    assert total == pytest.approx(sum(above), rel=1e-9)
    assert mean == pytest.approx(sum(above) / len(above) if above else 0, rel=1e-9)


def test_a_threshold_is_not_rounded_to_float32():
    value = np.float32(0.1)  # 0.100000001
    assert data_selection.response_score(np.array([value]), "high_entropy_sum", entropy_threshold=0.1) == float(value)


def test_unknown_names_and_sizes():
    with pytest.raises(ValueError, match=r"score must be one of .*'length'.*, got 'loss'"):
        data_selection.response_score(np.zeros(3), "loss")
    with pytest.raises(ValueError, match=r"order must be one of .*'longest'.*, got 'shortest'"):
        data_selection.sort_keys("shortest", [1.0], [1])
    for size in ({}, {"fraction": 0.5, "num_selected": 1}):
        with pytest.raises(ValueError, match="give one of fraction and num_selected"):
            strata_of([1, 2], **size)


# ---------------------------------------------------------------------- orders


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 4))), st.integers(1, 20))
def test_orders(responses, count):
    scores, lengths = [score for score, _ in responses], [length for _, length in responses]
    rows = range(len(responses))
    wanted = {
        "highest": sorted(rows, key=lambda row: -scores[row]),  # `sorted` keeps the order of equal ones
        "lowest": sorted(rows, key=lambda row: scores[row]),
        "longest": sorted(rows, key=lambda row: -lengths[row]),
    }
    for order, ranked in wanted.items():
        keys = data_selection.sort_keys(order, scores, lengths)
        strata = strata_of(lengths, match_length=False, num_selected=count)
        assert data_selection.select_responses(strata, keys) == set(ranked[:count])
        cut = keys[ranked[count - 1]] if len(ranked) > count else None
        tied = sum(keys[row] == cut for row in ranked[count:])
        assert data_selection.tied_at_the_cut(strata, keys) == tied


def test_scores_without_an_order():
    for order in data_selection.ORDERS:
        with pytest.raises(ValueError, match=r"of 2 of 4 responses are NaN, the first that of response 2: .*--dtype"):
            data_selection.sort_keys(order, [1.0, math.nan, 2.0, math.nan], [1, 1, 1, 1])


def draws(seed, size):
    return data_selection.sort_keys("random", [0.0] * size, [0] * size, seed=seed)


def test_a_random_draw_is_of_its_seed_and_row_only():
    assert draws(3, 200)[:50] == draws(3, 50)  # whatever follows
    assert data_selection.sort_keys("random", [float(n) for n in range(50)], range(50), seed=3) == draws(3, 50)
    assert draws(3, 50) != draws(4, 50)
    assert len(set(draws(3, 10_000))) == 10_000
    assert isinstance(draws(2**63 - 1, 1)[0], int)


@pytest.mark.parametrize("shift", [1, 2, 64])
def test_random_draws_of_two_seeds_have_nothing_to_do_with_each_other(shift):
    """A hash of `seed ^ row` would give the next seed the same draws, of other rows."""
    first = [draws(seed, 64) for seed in range(4)]
    second = [draws(seed + shift, 64) for seed in range(4)]
    for one, two in zip(first, second, strict=True):
        assert not set(one) & set(two)


def test_random_draws_are_uniform():
    """Each of ten rows is among the three selected in 30 % of 2,000 seeds, and so are pairs of them in 6.7 %."""
    strata = strata_of([0] * 10, match_length=False, num_selected=3)
    chosen = [data_selection.select_responses(strata, draws(seed, 10)) for seed in range(2000)]
    singles = Counter(row for rows in chosen for row in rows)
    pairs = Counter((a, b) for rows in chosen for a in rows for b in rows if a < b)
    assert sum(singles.values()) == 6000 and len(pairs) == 45
    assert max(abs(n - 600) for n in singles.values()) < 4 * math.sqrt(2000 * 0.3 * 0.7)
    assert max(abs(n - 2000 / 15) for n in pairs.values()) < 4.5 * math.sqrt(2000 / 15)


# ---------------------------------------------------------------------- pools and lengths


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 30)), max_size=60),
    st.sampled_from(
        [{"fraction": 0.2}, {"fraction": 0.55}, {"fraction": 1.0}, {"num_selected": 2}, {"num_selected": 9}]
    ),
    st.booleans(),
)
def test_every_pool_gives_exactly_its_number(responses, size, match_length):
    pools, lengths = [pool for pool, *_ in responses], [length for *_, length in responses]
    candidates = [row for row, (_, candidate, _) in enumerate(responses) if candidate]
    strata = strata_of(lengths, match_length, pools, candidates, **size)
    assert sorted(row for stratum in strata for row in stratum.rows) == candidates
    selected = data_selection.select_responses(strata, draws(0, len(responses)))
    for pool in "abc":
        members = [row for row in candidates if pools[row] == pool]
        if "fraction" in size:
            wanted = math.ceil(Fraction(str(size["fraction"])) * len(members))
        else:
            wanted = min(size["num_selected"], len(members))
        assert len(selected & set(members)) == wanted
        assert sum(s.count for s in strata if pools[s.rows[0]] == pool) == wanted
    assert all(len({pools[row] for row in stratum.rows}) == 1 for stratum in strata)


@given(LENGTHS, st.sampled_from([0.05, 0.2, 0.5, 0.8, 1.0]))
def test_strata_of_length(lengths, fraction):
    strata = strata_of(lengths, fraction=fraction)
    total, count = len(lengths), math.ceil(Fraction(str(fraction)) * len(lengths))
    assert len(strata) <= min(10, count)
    below = taken = 0
    for place, stratum in enumerate(strata):
        found = [lengths[row] for row in stratum.rows]
        # One length is never in two strata.
        assert all(max(found) < lengths[row] for later in strata[place + 1 :] for row in later.rows)
        # The naive decile of each: in tenths of the pool, how many are shorter.
        number = min(10, count)
        deciles = {Fraction(sum(other < length for other in lengths) * number, total) // 1 for length in found}
        assert len(deciles) == 1
        below, taken = below + len(found), taken + stratum.count
        assert 0 <= stratum.count <= len(found)
        share = Fraction(count * below, total)
        assert -Fraction(1, 2) < taken - share <= Fraction(1, 2)
        assert abs(stratum.count - Fraction(count * len(found), total)) <= 1
    assert taken == count


@given(LENGTHS, st.integers(0, 99), st.sampled_from([0.1, 0.3, 0.8]))
def test_the_best_of_each_stratum(lengths, seed, fraction):
    rng = random.Random(seed)
    scores = [rng.choice([0.0, 1.0, 2.0, 2.5]) for _ in lengths]
    strata = strata_of(lengths, fraction=fraction)
    selected = data_selection.select_responses(strata, data_selection.sort_keys("highest", scores, lengths))
    for stratum in strata:
        ranked = sorted(sorted(stratum.rows), key=lambda row: -scores[row])
        assert selected & set(stratum.rows) == set(ranked[: stratum.count])


def test_deciles_of_a_hundred():
    """One of each ten when ten are selected, two when twenty are; of the 15 the halves go to every second decile."""
    lengths = random.Random(0).sample(range(1000), 100)
    place = {length: number for number, length in enumerate(sorted(lengths))}
    for count, counts in ((10, [1] * 10), (20, [2] * 10), (15, [2, 1] * 5), (3, [1] * 3)):
        strata = strata_of(lengths, num_selected=count)
        assert [stratum.count for stratum in strata] == counts
        number = len(counts)
        assert [{place[lengths[row]] * number // 100 for row in s.rows} for s in strata] == [
            {n} for n in range(number)
        ]


def test_a_selection_by_length_alone_is_matched_away():
    """Scores that are lengths: matched, the selection has the candidates' mean length; without, the longest."""
    lengths = [n * n for n in range(1, 1001)]
    keys = data_selection.sort_keys("highest", lengths, lengths)

    def mean(match_length):
        strata = strata_of(lengths, match_length, fraction=0.2)
        rows = data_selection.select_responses(strata, keys)
        assert len(rows) == 200
        return sum(lengths[row] for row in rows) / 200

    everyone = sum(lengths) / 1000
    assert mean(False) > 2.4 * everyone
    assert mean(True) == pytest.approx(everyone, rel=0.15)  # up to the spread within a decile


def test_matching_lengths_that_are_all_equal_changes_nothing():
    scores = [random.Random(1).random() for _ in range(50)]
    keys = data_selection.sort_keys("highest", scores, [7] * 50)
    matched, free = (strata_of([7] * 50, match_length, fraction=0.2) for match_length in (True, False))
    assert data_selection.select_responses(matched, keys) == data_selection.select_responses(free, keys)


def test_a_small_pool_still_has_a_choice():
    """Ten strata of one response each would select by length and never by score."""
    strata = strata_of([5, 8, 1, 7, 2, 6, 4, 3], num_selected=2)
    assert [(sorted(stratum.rows), stratum.count) for stratum in strata] == [([2, 4, 6, 7], 1), ([0, 1, 3, 5], 1)]


def test_pools_that_give_a_single_response_are_not_matched():
    """Pool a gives one of two, b one of one, c two of three."""
    pools = strata_of([1] * 6, False, "aabccc", fraction=0.5)
    assert [(pool.rows, pool.count) for pool in pools] == [([0, 1], 1), ([2], 1), ([3, 4, 5], 2)]
    assert data_selection.num_unmatched(pools) == 1


@pytest.mark.parametrize("match_length", [False, True])
def test_overlap_by_chance_is_the_mean_of_random_draws(match_length):
    rng = random.Random(2)
    lengths, pools = [rng.randint(1, 40) for _ in range(30)], [rng.choice("ab") for _ in range(30)]
    size = {"pools": pools, "fraction": 0.3}
    longest = data_selection.select_responses(
        strata_of(lengths, False, **size), data_selection.sort_keys("longest", lengths, lengths)
    )
    strata = strata_of(lengths, match_length, **size)
    found = [len(data_selection.select_responses(strata, draws(seed, 30)) & longest) for seed in range(1500)]
    assert data_selection.overlap_by_chance(strata, longest) == pytest.approx(sum(found) / 1500, abs=0.12)

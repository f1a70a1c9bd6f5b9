"""Statistics of entropies against naive Python, on data with ties, zeros and empty responses."""

import math
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_fork.analysis import figures
from trl_fork.analysis import statistics as analysis
from trl_fork.analysis.tokens import TokenContexts, TokenStatistics


# A few values, so that there are ties, most of them at exactly 0
VALUES = (0.0, 0.0, 0.0, 0.005, 0.01, 0.5, 0.5, 1.25, 2.0, 3.5)


def draw(lengths, seed, values=VALUES):
    rng = random.Random(seed)
    return [[rng.choice(values) for _ in range(n)] for n in lengths]


def flat(rows):
    return np.array([value for row in rows for value in row], dtype=np.float32)


def naive_top(keyed: dict, fraction: float) -> set:
    count = math.ceil(Fraction(str(fraction)) * len(keyed))
    return set(sorted(keyed, key=lambda key: (-keyed[key], key))[:count])


def keyed(rows):
    return {(i, t): value for i, row in enumerate(rows) for t, value in enumerate(row)}


LENGTHS = [7, 0, 1, 40, 3, 12, 0]
rows_strategy = st.lists(st.lists(st.sampled_from(VALUES), max_size=12), min_size=1, max_size=6)


@given(st.lists(st.sampled_from(VALUES), min_size=1), st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.55, 0.8, 0.95, 1.0]))
def test_percentile_is_the_smallest_value_that_enough_do_not_exceed(values, level):
    enough = [v for v in values if sum(u <= v for u in values) >= Fraction(str(level)) * len(values)]
    assert analysis.percentile(np.array(values), level) == min(enough)


def test_percentile_takes_the_level_as_written():
    # In floats 0.55 * 100 is a little more than 55, and its ceiling 56.
    assert analysis.percentile(np.arange(1.0, 101.0), 0.55) == 55.0


@pytest.mark.parametrize("level", [0.05, 0.55, 0.8, 0.95])
def test_percentile_of_a_million_float32(level):
    """The numbers 1 to N, shuffled: the rank is the value, without the rounding of a product in float32."""
    values = np.random.default_rng(0).permutation(np.arange(1, 10**6 + 4, dtype=np.float32))
    assert analysis.percentile(values, level) == math.ceil(Fraction(str(level)) * len(values))


def test_percentile_at_its_edges():
    assert math.isnan(analysis.percentile(np.zeros(0), 0.5))
    assert math.isnan(analysis.percentile(np.array([1.0, math.nan, 3.0]), 0.5))
    assert analysis.percentile(np.array([7.0]), 0.0) == analysis.percentile(np.array([7.0]), 1.0) == 7.0
    assert analysis.percentile(np.array([3.0, 1.0, 2.0]), 0.0) == 1.0
    assert analysis.percentile(np.array([3.0, math.inf, 2.0]), 1.0) == math.inf
    traces = analysis.percentile_trace(np.zeros(0, np.float32), (0.2, 0.8))
    assert len(traces) == 2 and all(map(math.isnan, traces))
    assert analysis.percentile_trace(np.array([4, 1, 3, 2], np.float32), (0.25, 0.5, 0.75, 0.8)) == [1, 2, 3, 4]


def test_distribution():
    values = [value for row in draw([500], 0) for value in row]
    result = analysis.distribution(flat([values]))
    assert result["num_tokens"] == 500
    assert result["mean"] == pytest.approx(sum(values) / 500)
    # 0.01 in float32 is below 0.01 in float64; entropies are float32, and so is the limit
    assert result["fraction_below_0.01"] == sum(value < 0.01 for value in values) / 500
    ordered = sorted(values)
    percentiles = [result["p50"], result["p80"], result["p95"]]
    assert percentiles == pytest.approx([ordered[249], ordered[399], ordered[474]])
    edges, counts = result["histogram"]["edges"], result["histogram"]["counts"]
    assert sum(counts) == 500 and len(edges) == len(counts) + 1
    assert edges[0] == 0 and edges[-1] == pytest.approx(max(values))
    assert counts[0] == sum(value < edges[1] for value in values)


def test_all_zero_entropies():
    zeros = np.zeros(10, dtype=np.float32)
    result = analysis.distribution(zeros)
    assert (result["mean"], result["fraction_below_0.01"], result["p95"]) == (0, 1, 0)
    assert sum(result["histogram"]["counts"]) == 10
    assert analysis.overlap(zeros, zeros, np.array([4, 6]))["whole_set"] == 1


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.55, 1.0])
def test_overlap(fraction):
    first, second = draw(LENGTHS, 1), draw(LENGTHS, 2)
    a, b = naive_top(keyed(first), fraction), naive_top(keyed(second), fraction)
    result = analysis.overlap(flat(first), flat(second), np.array(LENGTHS), fraction)
    assert result["whole_set"] == pytest.approx(len(a & b) / len(a))
    assert result["expected_by_chance"] == pytest.approx(len(a) / sum(LENGTHS))
    shared = total = 0
    for row_a, row_b in zip(first, second, strict=True):
        a, b = naive_top(keyed([row_a]), fraction), naive_top(keyed([row_b]), fraction)
        shared, total = shared + len(a & b), total + len(a)
    assert result["per_response"] == pytest.approx(shared / total)


def test_overlap_needs_the_same_tokens():
    with pytest.raises(ValueError, match="do not belong to the same tokens: 3 and 4 of them, 4 expected"):
        analysis.overlap(np.zeros(3), np.zeros(4), np.array([4]))


@pytest.mark.parametrize("num_tokens", [1000, 63, 7])
def test_change_by_percentile(num_tokens):
    before, after = (draw([num_tokens], seed)[0] for seed in (3, 4))
    order = sorted(range(num_tokens), key=lambda i: (before[i], i))  # ties by place in the file
    expected = []
    for number in range(20):
        tokens = order[number * num_tokens // 20 : (number + 1) * num_tokens // 20]
        if tokens:
            changes = [after[i] - before[i] for i in tokens]
            expected.append(
                {
                    "percentiles": [5 * number, 5 * number + 5],
                    "num_tokens": len(tokens),
                    "reference_min": min(before[i] for i in tokens),
                    "reference_max": max(before[i] for i in tokens),
                    "mean_change": sum(changes) / len(tokens),
                    "fraction_increased": sum(c > 0 for c in changes) / len(tokens),
                    "fraction_decreased": sum(c < 0 for c in changes) / len(tokens),
                }
            )
    result = analysis.change_by_percentile(flat([before]), flat([after]))
    assert len(result) == len(expected)
    for found, wanted in zip(result, expected, strict=True):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert found[key] == pytest.approx(wanted[key], abs=1e-6), key


def test_a_decrease_is_negative():
    reference = np.linspace(0, 2, 100, dtype=np.float32)
    result = analysis.change_by_percentile(reference, reference * 0.5)
    assert all(row["mean_change"] < 0 and row["fraction_increased"] == 0 for row in result)
    assert result[-1]["mean_change"] < result[0]["mean_change"]


@given(rows_strategy)
def test_position_profile(rows):
    lengths = [len(row) for row in rows]
    entropies = flat(rows)
    selected = np.array([value > 0.4 for row in rows for value in row], dtype=bool)
    bins = [[] for _ in range(5)]
    for row in rows:
        for t, value in enumerate(row):
            bins[math.floor(5 * Fraction(2 * t + 1, 2 * len(row)))].append(value)
    result = analysis.position_profile(entropies, lengths, selected, num_bins=5)
    for number, values in enumerate(bins):
        assert result["num_tokens"][number] == len(values)
        mean, share = result["mean_entropy"][number], result["selected_fraction"][number]
        if values:
            assert mean == pytest.approx(sum(values) / len(values), abs=1e-6)
            assert share == pytest.approx(sum(value > 0.4 for value in values) / len(values))
        else:
            assert math.isnan(mean) and math.isnan(share)


def test_correctness_and_scope():
    rows = draw([20, 30, 25, 0, 10, 15], 5)
    correct = [True, False, True, True, None, False]
    lengths = np.array([len(row) for row in rows])
    top = naive_top(keyed(rows), 0.2)
    selected = analysis.select_of_set(flat(rows))
    assert {key for key, chosen in zip(keyed(rows), selected, strict=True) if chosen} == top
    result = analysis.correctness_summary(flat(rows), lengths, selected, correct)
    for name, group in (("correct", [0, 2]), ("incorrect", [1, 5])):  # an empty response has no entropy
        tokens = [value for i in group for value in rows[i]]
        found = result[name]
        assert (found["num_responses"], found["num_tokens"]) == (2, len(tokens))
        assert found["mean_length"] == len(tokens) / 2
        assert found["mean_entropy"] == pytest.approx(sum(tokens) / len(tokens))
        assert found["mean_response_entropy"] == pytest.approx(sum(sum(rows[i]) / len(rows[i]) for i in group) / 2)
        assert found["selected_fraction"] == pytest.approx(sum(i in group for i, _ in top) / len(tokens))
        assert found["mean_high_entropy_sum"] == pytest.approx(sum(max(rows[i]) for i in group) / 2)

    scope = analysis.scope_summary(flat(rows), lengths)
    shares = sorted(sum(key[0] == i for key in top) / len(row) for i, row in enumerate(rows) if row)
    assert scope["selected_fraction_of_responses"] == pytest.approx(
        {"p0": shares[0], "p5": shares[0], "p50": shares[2], "p95": shares[4], "p100": shares[4]}
    )
    by_row = {(i, t) for i, row in enumerate(rows) for _, t in naive_top(keyed([row]), 0.2)}
    assert scope["batch_and_sequence_overlap"] == pytest.approx(len(top & by_row) / len(top))


def naive_pearson(first, second):
    means = sum(first) / len(first), sum(second) / len(second)
    x, y = [a - means[0] for a in first], [b - means[1] for b in second]
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def naive_ranks(values):
    """Equal values share the mean of their ranks."""
    return [sum(u < v for u in values) + (sum(u == v for u in values) - 1) / 2 for v in values]


@pytest.mark.parametrize("seed", range(5))
def test_correlations(seed):
    lengths = [2, 0, 5, 5, 1, 0, 9, 3]  # two are equal, and what has no tokens has no mean entropy
    rows = draw(lengths, seed)
    pairs = [(len(row), sum(row) / len(row)) for row in rows if row]
    result = analysis.length_summary(flat(rows), np.array(lengths))
    assert result["mean"] == sum(lengths) / 8
    assert result["pearson_with_mean_entropy"] == pytest.approx(naive_pearson(*zip(*pairs, strict=True)), abs=1e-7)
    expected = naive_pearson(*map(naive_ranks, zip(*pairs, strict=True)))
    assert result["spearman_with_mean_entropy"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", [analysis.pearson, analysis.spearman])
def test_correlation_where_there_is_none(correlation):
    for first, second in ((np.ones(4), np.arange(4)), (np.arange(4), np.ones(4)), ([], []), ([1.0], [2.0])):
        assert math.isnan(correlation(np.array(first), np.array(second)))
    means = [sum([0.1] * n) / n for n in (1, 2, 3, 10)]
    assert len(set(means)) > 1 and math.isnan(correlation(np.array([1, 2, 3, 10]), np.array(means)))
    assert math.isnan(correlation(np.array([1.0, math.nan, 2.0]), np.arange(3)))
    assert correlation(np.array([1.0, 2.0]), np.array([5, 3])) == pytest.approx(-1, abs=1e-12)
    assert correlation(np.array([1e-9, 2e-9]), np.array([5, 3])) == pytest.approx(-1, abs=1e-12)
    # Near each other in float32, and not rounded to that
    lengths, sums = np.array([1, 2, 3, 4]), np.array([1e4, 1e4 + 2, 1e4 + 1, 1e4 + 3], np.float32)
    assert correlation(lengths, sums) == pytest.approx(0.8, abs=1e-9)


def test_what_is_slow_to_import_comes_with_its_use():
    code = "import sys; import trl_fork.analysis.statistics, trl_fork.evaluation.metrics; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"scipy.stats", "trl"} & set(done.stdout.split())


@given(st.lists(st.sampled_from(VALUES), max_size=500), st.sampled_from([0.005, 0.2, 0.55, 1.0]))
def test_high_entropy_sum(values, fraction):
    count = math.ceil(Fraction(str(fraction)) * len(values))
    expected = sum(sorted(values, reverse=True)[:count])
    assert analysis.high_entropy_sum(np.array(values, dtype=np.float32), fraction) == pytest.approx(expected, rel=1e-6)


def test_high_entropy_sum_takes_one_token_of_a_short_response():
    assert analysis.high_entropy_sum(np.array([0.5, 2.0])) == 2.0
    assert analysis.high_entropy_sum(np.zeros(0)) == 0.0
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        analysis.high_entropy_sum(np.zeros(3), 0)


# ---------------------------------------------------------------------- token types


def test_token_statistics():
    rng = random.Random(6)
    rows = [[rng.randrange(9) for _ in range(50)] for _ in range(20)]
    entropies = draw([50] * 20, 7)
    statistics = TokenStatistics(10)
    for ids, values in zip(rows, entropies, strict=True):
        statistics.add(ids, np.array(values, dtype=np.float32))
    by_type = {}
    for ids, values in zip(rows, entropies, strict=True):
        for token, value in zip(ids, values, strict=True):
            by_type.setdefault(token, []).append(value)
    floor = sorted(map(len, by_type.values()))[3]  # strictly more often: this one is left out
    wanted = [token for token in by_type if len(by_type[token]) > floor]
    assert 0 < len(wanted) < 9
    ranked = statistics.ranked(floor)
    assert ranked == sorted(wanted, key=lambda token: (-sum(by_type[token]) / len(by_type[token]), token))
    for token in ranked:
        assert statistics.mean(token) == pytest.approx(sum(by_type[token]) / len(by_type[token]), rel=1e-6)
        assert statistics.counts[token] == len(by_type[token])


def test_equal_means_go_by_token_id():
    statistics = TokenStatistics(5)
    statistics.add([3, 1, 4], np.array([0.5, 0.5, 0.7], dtype=np.float32))
    assert statistics.ranked(0) == [4, 1, 3]


def test_contexts():
    contexts = TokenContexts([7, 8], num_examples=2, width=2)
    top_ids = np.array([[7, 1], [5, 8], [7, 2]], dtype=np.int32)
    top_probs = np.array([[0.9, 0.1], [0.6, 0.3], [0.5, 0.25]], dtype=np.float32)
    contexts.add([7, 8, 7], np.array([0.1, 0.2, 0.3]), top_ids, top_probs)
    contexts.add([1, 2, 3, 7, 4, 5, 6], np.arange(7.0), np.zeros((7, 0)), np.zeros((7, 0)))
    assert contexts.followers == {7: Counter({8: 1, 4: 1}), 8: Counter({7: 1})}
    # Over the two positions of 7 whose alternatives are known; 7 itself is none.
    assert contexts.alternatives(7) == [(2, 0.125), (1, pytest.approx(0.05))]
    assert contexts.alternatives(8) == [(5, pytest.approx(0.6))]
    (example,) = contexts.examples[8]
    assert (example.response, example.position, example.entropy) == (0, 1, 0.2)
    assert (example.before, example.after) == ([7], [7])
    assert len(contexts.examples[7]) == 2
    for example in contexts.examples[7]:
        if example.response == 1:
            assert (example.position, example.before, example.after) == (3, [2, 3], [4, 5])


def test_examples_are_drawn_uniformly():
    # 2 of 10 places: each with probability 1/5. Over 2,000 draws, five standard deviations are 0.045.
    drawn = Counter()
    for seed in range(2000):
        contexts = TokenContexts([0], num_examples=2, seed=seed)
        contexts.add([0] * 10, np.zeros(10), np.zeros((10, 0)), np.zeros((10, 0)))
        drawn.update(example.position for example in contexts.examples[0])
    assert sum(drawn.values()) == 4000
    assert all(abs(drawn[place] / 2000 - 0.2) < 0.045 for place in range(10))


def test_word_cloud_of_tokens_that_end_a_paragraph():
    """A layout of text fails at these: a random model samples them."""
    tokens = ["\n", "\r", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "a"]
    entries = [{"token": token, "mean_entropy": 1.0 + number} for number, token in enumerate(tokens)]
    figure = figures.plot_token_cloud(entries, "Words", largest="high")
    assert {figures.visible(token) for token in tokens} == set("↵␍␜␝␞�¶a")
    assert len(figure.axes[0].patches) == 8

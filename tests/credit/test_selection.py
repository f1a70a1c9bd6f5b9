"""The selection rule on one pool, per sequence and over simulated ranks, against sorting in Python."""

import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import priority, select
from tests.oracles import top as naive_top
from trl_fork import select_tokens
from trl_fork.credit.selection import (
    NaNEntropyError,
    forking_count,
    random_priorities,
    select_tokens_per_sequence,
)
from trl_fork.ranks import Ranks, percentiles, sort_keys, top_k, values_of_keys
from trl_fork.trainer.metrics import count_metrics, entropy_metrics


def naive_select(entropies, mask, fraction, pools=None, rule="high_entropy"):
    rows = [FakeRollout(r, m) for r, m in enumerate(mask.tolist())]
    scores = dict(enumerate(entropies.tolist()))
    chosen = select(rows, scores, fraction, rule, pools or [list(range(len(rows)))])
    result = torch.zeros(mask.shape, dtype=torch.bool)
    for row, token in chosen:
        result[row, token] = True
    return result


class FakeRollout:
    def __init__(self, row, valid):
        self.row, self.valid = row, valid


@st.composite
def pools(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    size = rows * columns
    # Few distinct values: ties, zeros of both signs, tiny and huge magnitudes
    values = st.sampled_from([0.0, -0.0, 1e-38, 0.5, 0.5000001, 2.0, 3e38]) | st.floats(0, 20, width=32)
    entropies = torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).view(rows, columns)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(rows, columns)
    fraction = draw(st.sampled_from([0.01, 0.1, 0.2, 0.3, 0.55, 0.7, 0.999, 1.0]) | st.floats(1e-6, 1.0))
    return entropies, mask, fraction


@given(pools(), st.sampled_from(["high_entropy", "low_entropy"]))
@settings(deadline=None)
def test_selects_what_sorting_selects(pool, rule):
    entropies, mask, fraction = pool
    selected = select_tokens(entropies, mask, fraction, rule=rule)
    assert torch.equal(selected, naive_select(entropies, mask, fraction, rule=rule))
    forking = forking_count(int(mask.sum()), fraction)
    assert selected.sum() == (forking if rule == "high_entropy" else mask.sum() - forking)
    per_sequence = select_tokens_per_sequence(entropies, mask, fraction, rule=rule)
    assert torch.equal(
        per_sequence, naive_select(entropies, mask, fraction, pools=[[r] for r in range(len(mask))], rule=rule)
    )


@given(pools(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_permutation_equivariant(pool, random):
    entropies, mask, fraction = pool
    # Without ties: a tie is broken by place, and a permutation changes places.
    entropies = torch.arange(entropies.numel()).float().view(entropies.shape) * 0.37 % 5
    order = list(range(entropies.numel()))
    random.shuffle(order)
    moved = [tensor.flatten()[order].view(tensor.shape) for tensor in (entropies, mask)]
    expected = select_tokens(entropies, mask, fraction).flatten()[order].view(mask.shape)
    assert torch.equal(select_tokens(*moved, fraction), expected)


@given(pools(), st.integers(0, 3), st.integers(0, 4))
@settings(deadline=None)
def test_padding_never_matters(pool, left, right):
    entropies, mask, fraction = pool
    expected = select_tokens(entropies, mask, fraction)
    for garbage in (float("nan"), float("inf"), 1e30, -1.0):
        padded = torch.nn.functional.pad(entropies.masked_fill(~mask, garbage), (left, right), value=garbage)
        padded_mask = torch.nn.functional.pad(mask, (left, right))
        selected = select_tokens(padded, padded_mask, fraction)
        assert torch.equal(selected[:, left : left + mask.shape[1]], expected)
        assert selected.sum() == expected.sum()


@given(pools(), st.floats(1e-6, 1.0))
@settings(deadline=None)
def test_monotone_in_the_fraction(pool, other):
    entropies, mask, fraction = pool
    small, large = sorted([fraction, other])
    assert not (select_tokens(entropies, mask, small) & ~select_tokens(entropies, mask, large)).any()


def test_fraction_is_the_decimal_it_is_written_as():
    assert forking_count(100, 0.55) == 55  # math.ceil(0.55 * 100) is 56
    assert forking_count(10, 0.1) == 1
    assert forking_count(1, 1e-05) == 1
    assert forking_count(0, 0.2) == 0


def test_all_tied_takes_the_first():
    selected = select_tokens(torch.full((3, 4), 1.7), torch.ones(3, 4), 0.5)
    assert selected.flatten().tolist() == [True] * 6 + [False] * 6


def test_mostly_zeros_selects_exactly_k():
    # TRL's `>= quantile` keeps all 1000 tokens here.
    entropies = torch.zeros(10, 100)
    entropies[:, ::20] = 1.0
    selected = select_tokens(entropies, torch.ones(10, 100), 0.2)
    assert selected.sum() == 200 and selected[:, ::20].all()


def test_empty_pool_selects_nothing():
    nothing = torch.zeros(2, 3)
    for rule in ("high_entropy", "low_entropy"):
        assert not select_tokens(torch.full((2, 3), float("nan")), nothing, 0.2, rule=rule).any()
        assert not select_tokens_per_sequence(nothing, nothing, 0.2, rule=rule).any()


def test_more_tokens_than_quantile_takes():
    entropies = torch.rand(17, 2**20 + 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(entropies.flatten(), 0.8)
    selected = select_tokens(entropies, torch.ones_like(entropies, dtype=torch.bool), 0.2)
    count = forking_count(entropies.numel(), 0.2)
    assert selected.sum() == count
    assert entropies[selected].min() >= entropies[~selected].max()


def test_nan_is_counted():
    entropies = torch.ones(2, 4)
    entropies[0, 1] = entropies[1, 3] = entropies[1, 0] = float("nan")
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(ValueError, match="2 of 7 valid tokens have a NaN entropy"):
        select_tokens(entropies, mask, 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 20}, r"fraction must be in \(0, 1\], got 20"),
        ({"fraction": 0.0}, "got 0.0"),
        ({"fraction": float("nan")}, "got nan"),
        ({"rule": "lowest"}, "rule must be one of"),
        ({"rule": "random"}, "needs `priorities`"),
        ({"mask": torch.ones(2, 4)}, r"got \(2, 3\) and \(2, 4\)"),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {"entropies": torch.ones(2, 3), "mask": torch.ones(2, 3), "fraction": 0.2, **arguments}
    with pytest.raises(ValueError, match=message):
        select_tokens(arguments.pop("entropies"), arguments.pop("mask"), arguments.pop("fraction"), **arguments)


# ---------------------------------------------------------------------- random selection


def test_priorities_are_a_hash_of_the_place():
    table = random_priorities(7, (0, 3, 1), 0, (6, 5))
    assert table.tolist() == [[priority(7, (0, 3, 1), row, t) for t in range(5)] for row in range(6)]
    # The same rows, seen by the second of two ranks and with longer padding
    assert torch.equal(random_priorities(7, (0, 3, 1), 4, (2, 9))[:, :5], table[4:])
    assert not torch.equal(random_priorities(8, (0, 3, 1), 0, (6, 5)), table)
    assert not torch.equal(random_priorities(7, (0, 4, 1), 0, (6, 5)), table)


def test_random_selection_is_uniform():
    shape = (50, 40)
    counts = torch.zeros(shape)
    for generation in range(200):
        counts += select_tokens(
            torch.zeros(shape),
            torch.ones(shape),
            0.2,
            rule="random",
            priorities=random_priorities(0, (generation,), 0, shape),
        )
    assert counts.sum() == 200 * 400
    # Binomial(200, 0.2): mean 40, standard deviation 5.66; sample deviation of 2000 cells within 5 %
    assert abs(counts.std().item() - 5.66) < 0.3
    assert counts.min() > 10 and counts.max() < 75


# ---------------------------------------------------------------------- several ranks


class ThreadRanks(Ranks):
    """Ranks that are threads of this process: every collective waits for all of them."""

    def __init__(self, index, count, shared, barrier):
        self.index, self.count, self.shared, self.barrier = index, count, shared, barrier

    def _exchange(self, tensor):
        self.shared[self.index] = tensor
        self.barrier.wait()
        tensors = list(self.shared)
        self.barrier.wait()
        return torch.stack(tensors)

    def sum(self, tensor):
        return self._exchange(tensor).sum(0)

    def gather(self, scalar):
        return self._exchange(scalar.reshape(()))


def on_ranks(function, arguments):
    """Call `function(*arguments[i], ranks)` on rank i and return all results, or raise the first error."""
    count = len(arguments)
    shared, barrier = [None] * count, threading.Barrier(count, timeout=60)
    results, errors = [None] * count, [None] * count

    def run(index):
        try:
            results[index] = function(*arguments[index], ThreadRanks(index, count, shared, barrier))
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, errors


@given(pools(), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.sampled_from(["high_entropy", "low_entropy"]))
@settings(deadline=None, max_examples=50)
def test_ranks_select_what_one_process_selects(pool, cuts, rule):
    entropies, mask, fraction = pool
    whole = select_tokens(entropies, mask, fraction, rule=rule)
    # Any split of the rows, ranks without rows included
    bounds = [0, *sorted(min(c, len(mask)) for c in cuts), len(mask)]
    parts = [(entropies[a:b], mask[a:b]) for a, b in pairwise(bounds)]
    results, errors = on_ranks(lambda e, m, ranks: select_tokens(e, m, fraction, rule=rule, ranks=ranks), parts)
    assert errors == [None] * len(parts)
    assert torch.equal(torch.cat(results), whole)


def test_nan_on_one_rank_raises_on_every_rank():
    parts = [(torch.ones(1, 3), torch.ones(1, 3)), (torch.full((1, 3), float("nan")), torch.ones(1, 3))]
    _, errors = on_ranks(lambda e, m, ranks: select_tokens(e, m, 0.2, ranks=ranks), parts)
    assert all(isinstance(error, NaNEntropyError) for error in errors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_top_k_of_any_dtype(dtype):
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(500, generator=generator) * 10).to(dtype)
    values = torch.cat([values, values[:100], -values[:100]])
    expected = naive_top({(0, i): v for i, v in enumerate(values.tolist())}, 0.3)
    assert {(0, i) for i in top_k(values, 210, Ranks()).nonzero()[:, 0].tolist()} == expected
    if dtype.is_floating_point:
        assert torch.equal(
            values_of_keys(sort_keys(values)), values.double() if dtype == torch.float64 else values.float()
        )


def test_percentiles():
    values = torch.tensor([4.0, 1.0, 3.0, 2.0, 5.0])
    assert percentiles(values, [0.2, 0.5, 0.8, 1.0], Ranks()) == [1.0, 3.0, 4.0, 5.0]
    parts = [(values[:1],), (values[1:1],), (values[1:],)]
    results, _ = on_ranks(lambda v, ranks: percentiles(v, [0.2, 0.5, 0.8], ranks), parts)
    assert results == [[1.0, 3.0, 4.0]] * 3
    assert percentiles(torch.arange(1.0, 101.0), [0.55, 0.07, 1.0], Ranks()) == [55.0, 7.0, 100.0]
    assert all(p != p for p in percentiles(torch.empty(0), [0.5], Ranks()))


# ---------------------------------------------------------------------- metrics


def all_metrics(entropies, mask, selected, advantages, rule, scope, ranks):
    counts = count_metrics(mask, selected, advantages, ranks=ranks)
    return counts | entropy_metrics(entropies, mask, selected, rule=rule, scope=scope, ranks=ranks)


def test_metrics_by_hand():
    entropies = torch.tensor([[0.1, 0.9, 0.3, 7.0], [0.5, 0.2, 7.0, 7.0], [0.4, 7.0, 7.0, 7.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    selected = select_tokens(entropies, mask, 0.3)  # 2 of 6: 0.9 and 0.5
    advantages = torch.tensor([1.0, 0.0, -1.0])  # the second row is inert by advantage, the third by selection
    metrics = all_metrics(entropies, mask, selected, advantages, "high_entropy", "batch", Ranks())
    assert metrics == pytest.approx(
        {
            "selected_fraction": 2 / 6,
            "selected_entropy_mean": 0.7,
            "unselected_entropy_mean": 0.25,
            "entropy_p50": 0.3,
            "entropy_p80": 0.5,
            "entropy_p95": 0.9,
            "inert_row_fraction": 2 / 3,
            "entropy_threshold": 0.5,
        }
    )
    low = select_tokens(entropies, mask, 0.3, rule="low_entropy")
    low_metrics = all_metrics(entropies, mask, low, advantages, "low_entropy", "batch", Ranks())
    assert low_metrics["entropy_threshold"] == pytest.approx(0.5)
    assert low_metrics["selected_fraction"] == pytest.approx(4 / 6)
    per_sequence = select_tokens_per_sequence(entropies, mask, 0.3)  # 0.9, 0.5, 0.4
    metrics = all_metrics(entropies, mask, per_sequence, advantages, "high_entropy", "sequence", Ranks())
    assert metrics["entropy_threshold"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("scope", "threshold"), [("batch", 0.4), ("micro_batch", 0.4), ("local", 0.65), ("sequence", 0.6)]
)
def test_metrics_over_ranks(scope, threshold):
    entropies = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 7.0], [0.4, 7.0, 7.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    selected = torch.tensor([[0, 1, 0], [1, 0, 0], [1, 0, 0]])
    advantages = torch.tensor([1.0, 0.0, 2.0])
    parts = [tuple(t[rows] for t in (entropies, mask, selected, advantages)) for rows in ([0], [1, 2], [])]
    results, errors = on_ranks(lambda *a: all_metrics(*a[:4], "high_entropy", scope, a[4]), parts)
    assert errors == [None] * len(parts)
    for metrics in results:
        assert metrics["selected_fraction"] == pytest.approx(0.5)
        assert metrics["inert_row_fraction"] == pytest.approx(1 / 3)
        assert metrics["entropy_p50"] == pytest.approx(0.3)
        assert metrics["entropy_threshold"] == pytest.approx(threshold)

"""The selection of tokens from one pool, per sequence and over simulated ranks, against sorting in Python."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.credit.simulated_ranks import all_results, on_ranks
from tests.oracles import priority, select
from trl_fork.credit import NaNSignalError, forking_count, random_priorities, select_tokens
from trl_fork.credit.pools import SequencePool


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
    per_sequence = SequencePool().top(entropies, mask, fraction)
    if rule == "low_entropy":
        per_sequence = mask & ~per_sequence
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
    assert not SequencePool().top(nothing, nothing, 0.2).any()
    for rule in ("high_entropy", "low_entropy"):
        assert not select_tokens(torch.full((2, 3), float("nan")), nothing, 0.2, rule=rule).any()


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


@given(pools(), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.sampled_from(["high_entropy", "low_entropy"]))
@settings(deadline=None, max_examples=50)
def test_ranks_select_what_one_process_selects(pool, cuts, rule):
    entropies, mask, fraction = pool
    whole = select_tokens(entropies, mask, fraction, rule=rule)
    # Any split of the rows, ranks without rows included
    bounds = [0, *sorted(min(c, len(mask)) for c in cuts), len(mask)]
    parts = [(entropies[a:b], mask[a:b]) for a, b in pairwise(bounds)]
    results = all_results(lambda e, m, ranks: select_tokens(e, m, fraction, rule=rule, ranks=ranks), parts)
    assert torch.equal(torch.cat(results), whole)


def test_nan_on_one_rank_raises_on_every_rank():
    parts = [(torch.ones(1, 3), torch.ones(1, 3)), (torch.full((1, 3), float("nan")), torch.ones(1, 3))]
    _, errors = on_ranks(lambda e, m, ranks: select_tokens(e, m, 0.2, ranks=ranks), parts)
    assert all(isinstance(error, NaNSignalError) for error in errors)

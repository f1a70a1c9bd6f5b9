"""Pools against sorting and adding in Python, on one process and on simulated ranks."""

import pytest
import torch

from tests.credit.batches import batch_of_signals
from tests.credit.simulated_ranks import all_results, on_ranks
from tests.oracles import top
from trl_fork.credit import POOLS, NaNSignalError, pool_of


ROWS = [range(13), range(13, 32)]  # of two ranks
every_pool = pytest.mark.parametrize("name", POOLS)


def pools_of_rows(name):
    """The rows of each pool when the batch lies on two ranks."""
    if name == "sequence":
        return [[row] for row in range(32)]
    return [list(rows) for rows in ROWS] if name == "local" else [list(range(32))]


def tokens_of(mask, pool):
    return [(row, t) for row in pool for t, ok in enumerate(mask[row].tolist()) if ok]


def parts_of(*tensors):
    return [tuple(t[rows.start : rows.stop] for t in tensors) for rows in ROWS]


@every_pool
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.55, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_top_of_each_pool(name, fraction, ties):
    signals = batch_of_signals()
    scores = signals.entropies.round() if ties else signals.entropies
    expected = set()
    for pool in pools_of_rows(name):
        expected |= top({key: scores[key].item() for key in tokens_of(signals.mask, pool)}, fraction)
    results = all_results(lambda s, m, ranks: pool_of(name, ranks).top(s, m, fraction), parts_of(scores, signals.mask))
    assert {tuple(key) for key in torch.cat(results).nonzero().tolist()} == expected


@every_pool
def test_sum_and_mean_of_each_pool(name):
    signals = batch_of_signals()
    values = signals.entropies.masked_fill(signals.mask == 0, float("nan"))

    def both(v, m, ranks):
        pool = pool_of(name, ranks)
        return torch.cat([t.expand(len(v), 1) for t in (pool.sum(v, m), pool.mean(v, m))], dim=1)

    result = torch.cat(all_results(both, parts_of(values, signals.mask)))
    assert result.dtype == torch.float64
    for pool in pools_of_rows(name):
        tokens = [values[key].item() for key in tokens_of(signals.mask, pool)]
        for row in pool:
            expected = [sum(tokens), sum(tokens) / max(len(tokens), 1)]
            assert result[row].tolist() == pytest.approx(expected, rel=1e-12)


@every_pool
def test_mean_of_the_lowest_chosen(name):
    signals = batch_of_signals()
    chosen = (signals.mask != 0) & (signals.entropies > 2.0)
    chosen[5] = False
    lowest = []
    for pool in pools_of_rows(name):
        values = [signals.entropies[key].item() for key in tokens_of(chosen, pool)]
        lowest += [min(values)] if values else []
    results = all_results(
        lambda v, c, ranks: pool_of(name, ranks).mean_lowest(v, c), parts_of(signals.entropies, chosen)
    )
    assert results == [pytest.approx(sum(lowest) / len(lowest))] * 2
    nothing = torch.zeros_like(chosen)
    empty = all_results(
        lambda v, c, ranks: pool_of(name, ranks).mean_lowest(v, c), parts_of(signals.entropies, nothing)
    )
    assert all(value != value for value in empty)


@every_pool
def test_check_raises_on_all_ranks_and_names_the_signal(name):
    signals = batch_of_signals()
    for signal, words in (("entropies", "NaN entropy: the logits hold"), ("gradient_magnitude", "NaN gradient_mag")):
        values = signals.entropies.masked_fill(signals.mask == 0, float("nan"))
        all_results(lambda v, m, r, s=signal: pool_of(name, r).check(v, m, s), parts_of(values, signals.mask))
        values[0, signals.mask[0].nonzero()[0]] = float("nan")
        _, errors = on_ranks(lambda v, m, r, s=signal: pool_of(name, r).check(v, m, s), parts_of(values, signals.mask))
        for error in errors:
            assert isinstance(error, NaNSignalError) and error.signal == signal
            assert f"1 of {int(signals.mask.sum())} valid tokens have a {words}" in str(error)


def test_pools_without_rows():
    nothing = torch.zeros(0, 4)
    for name in POOLS:
        pool = pool_of(name)
        assert pool.top(nothing, nothing, 0.2).shape == (0, 4)
        assert pool.sum(nothing, nothing).sum() == 0
        assert pool.mean_lowest(nothing, nothing.bool()) != pool.mean_lowest(nothing, nothing.bool())


def test_names():
    assert [pool_of(name).name for name in POOLS] == list(POOLS)
    assert [name for name in POOLS if pool_of(name).at_loss_time] == ["micro_batch", "local"]
    with pytest.raises(ValueError, match=r"pool must be one of \['batch'.*got 'bacth'"):
        pool_of("bacth")

"""The results of trl_fork.selection, bit for bit. Goes when that module goes."""

import pytest
import torch
from simulated_ranks import all_results

from trl_fork.credit import Chain, Random, Signals, TopFraction, normalise, pool_of, total_from_masks, totals
from trl_fork.metrics import _mean_threshold
from trl_fork.ranks import Ranks
from trl_fork.selection import select_in_scope, selected_count


def batch(seed):
    g = torch.Generator().manual_seed(seed)
    rows, columns = int(torch.randint(1, 7, (), generator=g)), int(torch.randint(1, 12, (), generator=g))
    entropies = torch.randint(0, 6, (rows, columns), generator=g) / 3.0
    if seed % 2:
        entropies = torch.rand(rows, columns, generator=g) * 3
    mask = (torch.rand(rows, columns, generator=g) > 0.3).long() * (seed % 11 > 0)
    priorities = torch.randint(-(2**62), 2**62, (rows, columns), generator=g)
    return entropies, mask, priorities


@pytest.mark.parametrize("scope", ["batch", "micro_batch", "local", "sequence"])
@pytest.mark.parametrize("rule", ["high_entropy", "low_entropy", "random"])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.55, 0.999, 1.0])
def test_equal(scope, rule, fraction):
    if rule == "low_entropy" and fraction == 1:
        return
    chain = Chain((Random(fraction) if rule == "random" else TopFraction(fraction, complement=rule == "low_entropy"),))

    def old(entropies, mask, priorities, ranks):
        selected = select_in_scope(
            entropies, mask, fraction, rule=rule, scope=scope, priorities=priorities, ranks=ranks
        )
        num_valid, num_selected = ranks.sum(torch.stack([mask.sum(), selected.sum()])).tolist()
        threshold = float("nan")
        if rule != "random":
            m, s = mask.bool(), selected != 0
            threshold = _mean_threshold(
                entropies.float().masked_fill(~m, 0.0), (m & ~s) if rule == "low_entropy" else s, scope, ranks
            )
        return selected.float() * (num_valid / max(num_selected, 1)), threshold

    def new(entropies, mask, priorities, ranks):
        pool = pool_of(scope, ranks)
        credit = chain.apply(Signals(mask, entropies, priorities=priorities), pool, ranks)
        known = totals(credit, mask, ranks)
        assert known == total_from_masks(chain, [mask], pool, ranks)
        if scope != "local":
            sizes = mask.sum(1).tolist() if scope == "sequence" else [int(ranks.sum(mask.sum()))]
            counted = selected_count(sizes, fraction, rule)
            assert known[0] == (ranks.sum(torch.tensor(counted)) if scope == "sequence" else counted)
        weights = normalise(credit.weights, *known, "selected")
        forking = chain.forking_set(weights, mask)
        assert (forking is None) == (rule == "random")
        return weights, float("nan") if forking is None else pool.mean_lowest(entropies, forking)

    for seed in range(40):
        data = batch(seed)
        parts = [tuple(t[: len(t) // 2] for t in data), tuple(t[len(t) // 2 :] for t in data)]
        for arguments in ([data], parts):
            if len(arguments) == 1:
                pairs = [(old(*data, Ranks()), new(*data, Ranks()))]
            else:
                pairs = list(zip(all_results(old, arguments), all_results(new, arguments), strict=True))
            for (old_weights, old_threshold), (weights, threshold) in pairs:
                assert torch.equal(old_weights, weights)
                assert old_threshold == threshold or (old_threshold != old_threshold and threshold != threshold)

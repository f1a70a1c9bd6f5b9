"""What the log says about a selection, by hand and over processes."""

import pytest
import torch

from tests.credit.simulated_ranks import on_ranks
from trl_fork import select_tokens
from trl_fork.credit import TopFraction, pool_of
from trl_fork.ranks import Ranks
from trl_fork.trainer.metrics import count_metrics, entropy_metrics


def all_metrics(entropies, mask, weights, advantages, rule, scope, ranks):
    counts = count_metrics(mask, weights, advantages, ranks=ranks)
    forking = rule.forking_set(weights, mask)
    return counts | entropy_metrics(entropies, mask, weights, forking, pool_of(scope, ranks), ranks=ranks)


def test_metrics_by_hand():
    entropies = torch.tensor([[0.1, 0.9, 0.3, 7.0], [0.5, 0.2, 7.0, 7.0], [0.4, 7.0, 7.0, 7.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    selected = select_tokens(entropies, mask, 0.3)  # 2 of 6: 0.9 and 0.5
    advantages = torch.tensor([1.0, 0.0, -1.0])  # the second row is inert by advantage, the third by selection
    metrics = all_metrics(entropies, mask, selected, advantages, TopFraction(), "batch", Ranks())
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
    low_metrics = all_metrics(entropies, mask, low, advantages, TopFraction(complement=True), "batch", Ranks())
    assert low_metrics["entropy_threshold"] == pytest.approx(0.5)
    assert low_metrics["selected_fraction"] == pytest.approx(4 / 6)
    per_sequence = pool_of("sequence").top(entropies, mask, 0.3)  # 0.9, 0.5, 0.4
    metrics = all_metrics(entropies, mask, per_sequence, advantages, TopFraction(), "sequence", Ranks())
    assert metrics["entropy_threshold"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("scope", "threshold"), [("batch", 0.4), ("micro_batch", 0.4), ("local", 0.65), ("sequence", 0.6)]
)
def test_metrics_over_ranks(scope, threshold):
    entropies = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.05], [0.4, 7.0, 7.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    selected = torch.tensor([[0, 1, 0], [1, 0, 0], [1, 0, 0]])
    advantages = torch.tensor([1.0, 0.0, 2.0])
    parts = [tuple(t[rows] for t in (entropies, mask, selected, advantages)) for rows in ([0], [1, 2], [])]
    results, errors = on_ranks(lambda *a: all_metrics(*a[:4], TopFraction(), scope, a[4]), parts)
    assert errors == [None] * len(parts)
    for metrics in results:
        assert metrics["selected_fraction"] == pytest.approx(3 / 7)
        assert metrics["selected_entropy_mean"] == pytest.approx(1.8 / 3)
        assert metrics["unselected_entropy_mean"] == pytest.approx(0.65 / 4)
        assert metrics["inert_row_fraction"] == pytest.approx(1 / 3)
        assert metrics["entropy_p50"] == pytest.approx(0.3)
        assert metrics["entropy_threshold"] == pytest.approx(threshold)

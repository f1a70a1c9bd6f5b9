"""What is logged of weights, by hand and over ranks."""

import pytest
import torch

from tests.credit.simulated_ranks import all_results
from trl_fork.credit import credit_effect


WEIGHTS = torch.tensor([[0.5, 2.0, 0.0, 9.0], [1.5, 0.0, 0.0, 9.0], [3.0, 0.25, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
ADVANTAGES = torch.tensor([2.0, -1.0, 0.0])
EXPECTED = {
    "effective_fraction": 7.25**2 / (7 * (0.25 + 4 + 2.25 + 9 + 0.0625)),
    "weight_max": 3.0,
    "positive_share": 2 * 2.5 / (2 * 2.5 + 1.5),
}


def test_by_hand():
    assert credit_effect(WEIGHTS, MASK, ADVANTAGES) == pytest.approx(EXPECTED)
    per_token = ADVANTAGES[:, None].expand(3, 4)
    assert credit_effect(WEIGHTS, MASK, per_token) == pytest.approx(EXPECTED)


def test_over_ranks():
    parts = [tuple(t[rows] for t in (WEIGHTS, MASK, ADVANTAGES)) for rows in ([0], [], [1, 2])]
    results = all_results(lambda w, m, a, ranks: credit_effect(w, m, a, ranks=ranks), parts)
    assert results == [pytest.approx(EXPECTED)] * 3


def test_a_selection_has_its_fraction():
    mask = torch.ones(4, 5)
    selection = torch.zeros(4, 5)
    selection[:, 2] = 5.0
    effect = credit_effect(selection, mask, torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert effect == pytest.approx({"effective_fraction": 0.2, "weight_max": 5.0, "positive_share": 0.75})


def test_nothing_to_divide_by():
    effect = credit_effect(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2))
    assert all(value != value for value in effect.values())
    unweighted = credit_effect(torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([1.0, float("nan")]))
    assert unweighted["weight_max"] == 0.0

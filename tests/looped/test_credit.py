"""Weights of loops and the losses of Ouro's two stages, against sums written out."""

import math
from itertools import pairwise

import pytest
import torch

from trl_fork.looped.credit import exit_distribution, expected_depth_loss, gate_loss, gate_targets, loop_weights


def naive_exits(gate_logits):
    """Probabilities of leaving after each loop, one token at a time."""
    left, exits = 1.0, []
    for number, logit in enumerate(gate_logits, start=1):
        leaves = 1.0 if number == len(gate_logits) else 1 / (1 + math.exp(-logit))
        exits.append(left * leaves)
        left *= 1 - leaves
    return exits


@pytest.fixture
def gate_logits():
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) * 2


def test_exit_distribution(gate_logits):
    found = exit_distribution(gate_logits)
    expected = torch.tensor([[naive_exits(token.tolist()) for token in row] for row in gate_logits])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 5))
    torch.testing.assert_close(exit_distribution(gate_logits[..., :1]), torch.ones(3, 5, 1))


def test_a_saturated_gate_has_finite_gradients():
    gate_logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 7.0]], requires_grad=True)
    p = exit_distribution(gate_logits)
    torch.testing.assert_close(p, torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    loss = expected_depth_loss(torch.ones(2, 3), gate_logits).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(gate_logits.grad).all()


@pytest.mark.parametrize(
    ("credit", "power", "expected"),
    [
        ("uniform", 1.0, [0.25] * 4),
        ("progressive", 1.0, [0.1, 0.2, 0.3, 0.4]),
        ("progressive", 2.0, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ("progressive", 0.0, [0.25] * 4),
    ],
)
def test_weights_of_loops(credit, power, expected):
    torch.testing.assert_close(loop_weights(credit, 4, power=power), torch.tensor(expected))


def test_weights_of_exits_train_the_gate(gate_logits):
    gate_logits.requires_grad_()
    weights = loop_weights("exit", 4, gate_logits=gate_logits)
    torch.testing.assert_close(weights, exit_distribution(gate_logits))
    weights[..., 0].sum().backward()
    assert gate_logits.grad[..., 0].abs().min() > 0 and not gate_logits.grad[..., -1].any()


def test_unknown_credit_and_missing_gate():
    with pytest.raises(ValueError, match=r"one of \['uniform', 'progressive', 'exit'\], got 'last'"):
        loop_weights("last", 4)
    with pytest.raises(ValueError, match="needs gate_logits"):
        loop_weights("exit", 4)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_stage_one_is_an_expectation_with_an_entropy_bonus(gate_logits, entropy_weight):
    losses = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(1)) * 3
    found = expected_depth_loss(losses, gate_logits, entropy_weight=entropy_weight)
    for row in range(3):
        for token in range(5):
            p = naive_exits(gate_logits[row, token].tolist())
            entropy = -sum(x * math.log(x) for x in p)
            assert entropy <= math.log(4)
            expected = sum(x * y for x, y in zip(p, losses[row, token].tolist(), strict=True))
            assert found[row, token].item() == pytest.approx(expected - entropy_weight * entropy, rel=1e-5)


def test_stage_one_bonus_is_largest_for_a_uniform_exit():
    """Logits for which each loop has probability 1/4: 1/4 of all, 1/3 of what is left, 1/2 of what is left."""
    uniform = torch.tensor([1 / 4, 1 / 3, 1 / 2, 0.5]).logit()
    bonus = expected_depth_loss(torch.zeros(4), uniform, entropy_weight=1.0).item()
    assert bonus == pytest.approx(-math.log(4), rel=1e-6)
    for shift in (-0.5, 0.5):
        assert expected_depth_loss(torch.zeros(4), uniform + shift, entropy_weight=1.0).item() > bonus


def test_stage_two_goes_on_where_a_loop_helps():
    losses = torch.tensor([[2.0, 1.0, 1.0, 1.5], [0.3, 0.295, 0.2, 0.1]])
    found = gate_targets(losses.clone().requires_grad_())
    expected = [
        [1 / (1 + math.exp(-50 * (max(0, before - after) - 0.005))) for before, after in pairwise(row)]
        for row in losses.tolist()
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert not found.requires_grad and found.shape == (2, 3)


def test_stage_two_loss_is_least_at_its_targets():
    targets = torch.tensor([[0.9, 0.2, 0.6]])
    at_targets = torch.cat([torch.zeros(1, 1), -targets.logit()], dim=1).requires_grad_()
    loss = gate_loss(at_targets, targets)
    expected = sum(-t * math.log(t) - (1 - t) * math.log(1 - t) for t in targets[0].tolist()) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.sum().backward()
    assert at_targets.grad.abs().max() < 1e-6  # lambda_t = 1 - w_t, and the first loop's gate is not asked

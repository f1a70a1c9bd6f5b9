"""
Mirror steps on policies whose sequences can all be enumerated, and on a game of two of them.

The formulas of magnetic mirror descent are written here, over whole sequences; the package has them over tokens.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.objectives.test_trajectory_balance import LENGTHS, MASK, PREFIXES, REWARDS, SEQUENCES, VOCABULARY
from tests.objectives.test_trajectory_balance import Table as Policy
from trl_fork.objectives import (
    LossInputs,
    TrajectoryBalance,
    balance_residual,
    group_log_partition,
    log_ratio,
    mirror_beta,
    mirror_reference,
)


TAU, ETA = 0.5, 0.8
SETTINGS = [(0.5, 0.8), (0.05, 3.0), (4.0, 0.1), (1e-4, 1e-3), (30.0, 50.0)]


def policy_of(probabilities):
    """The table with these probabilities of the sequences, by the total of the continuations of a prefix."""
    found = Policy(0)
    with torch.no_grad():
        for number, prefix in enumerate(PREFIXES):
            for token in range(VOCABULARY):
                below = [
                    p
                    for s, p in zip(SEQUENCES, probabilities, strict=True)
                    if s[: len(prefix) + 1] == (*prefix, token)
                ]
                found.logits[number, token] = math.log(sum(below))
    return found


def step_by_hand(start, magnet, rewards, tau, eta):
    """`(pi exp(eta r) rho^(eta tau))^(1 / (1 + eta tau))`, normalised, by sequences."""
    weights = [
        # Each factor has its power, so that none is too small for a float.
        p ** (1 / (1 + eta * tau)) * math.exp(eta * r / (1 + eta * tau)) * q ** (eta * tau / (1 + eta * tau))
        for p, q, r in zip(start, magnet, rewards, strict=True)
    ]
    return [w / sum(weights) for w in weights]


def probabilities_of(policy):
    return policy.sequence_log_probs().exp().tolist()


def residuals_of(policy, start, magnet, rewards, tau, eta, log_partition=None):
    """Those of the package, and its estimate of `log Z` over all sequences."""
    with torch.no_grad():
        reference = mirror_reference(start.log_probs(), magnet.log_probs(), tau, eta)
        ratios = log_ratio(policy.log_probs(), reference, MASK, length_normalized=False)
    beta = mirror_beta(tau, eta)
    everything = torch.zeros(len(rewards), dtype=torch.long)
    if log_partition is None:
        log_partition = group_log_partition(ratios, rewards, beta, everything, everything == 0)
    return balance_residual(ratios, rewards, log_partition, beta), log_partition


@pytest.fixture
def start():
    return Policy(3)


@pytest.fixture
def magnet():
    return Policy(4)


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=list(REWARDS))
@pytest.mark.parametrize(("tau", "eta"), SETTINGS)
def test_residuals_are_0_at_the_step(tau, eta, rewards, start, magnet):
    expected = step_by_hand(probabilities_of(start), probabilities_of(magnet), rewards.tolist(), tau, eta)
    after = policy_of(expected)
    assert probabilities_of(after) == pytest.approx(expected, rel=1e-9), "the step is a policy over tokens"
    residuals, log_partition = residuals_of(after, start, magnet, rewards, tau, eta)
    assert residuals.abs().max() < 1e-9
    exact = math.log(
        sum(
            p ** (1 / (1 + eta * tau)) * q ** (eta * tau / (1 + eta * tau)) * math.exp(eta * r / (1 + eta * tau))
            for p, q, r in zip(probabilities_of(start), probabilities_of(magnet), rewards.tolist(), strict=True)
        )
    )
    assert log_partition.tolist() == pytest.approx([exact] * len(rewards), abs=1e-9)
    assert residuals_of(start, start, magnet, rewards, tau, eta)[0].abs().max() > 1e-5


@pytest.mark.parametrize(("tau", "eta"), SETTINGS[:3])
def test_the_step_is_the_maximum_of_its_objective(tau, eta, start, magnet):
    """`E[r] - tau KL(pi, rho) - KL(pi, pi_k) / eta` is smaller beside it."""
    rewards = REWARDS["real"].tolist()
    before, pull = probabilities_of(start), probabilities_of(magnet)

    def objective(pi):
        return sum(
            p * (r - tau * math.log(p / q) - math.log(p / s) / eta)
            for p, q, s, r in zip(pi, pull, before, rewards, strict=True)
        )

    best = step_by_hand(before, pull, rewards, tau, eta)
    draw = np.random.default_rng(1)
    for scale in (1e-3, 0.1, 1.0):
        for _ in range(20):
            other = np.array(best) * np.exp(scale * draw.normal(size=len(best)))
            assert objective(other / other.sum()) < objective(best)


@pytest.mark.parametrize(("tau", "eta"), [(0.5, 0.8), (0.3, 5.0), (2.0, 0.2)])
def test_steps_end_at_the_target_without_them(tau, eta, start, magnet):
    """`rho exp(r / tau) / Z`, at the rate `1 / (1 + eta tau)`, and there a step moves nothing."""
    rewards = REWARDS["real"]
    target = np.array(probabilities_of(magnet)) * np.exp(rewards.numpy() / tau)
    target /= target.sum()
    policy, distances = start, []
    for _ in range(40):
        reference = mirror_reference(policy.log_probs(), magnet.log_probs(), tau, eta).masked_fill(~MASK, 0.0).sum(1)
        weights = (reference + rewards / mirror_beta(tau, eta)).exp()
        policy = policy_of((weights / weights.sum()).tolist())
        gaps = np.log(np.array(probabilities_of(policy))) - np.log(target)
        distances.append(np.ptp(gaps))
    for before, after in pairwise(distances[:9]):
        assert after == pytest.approx(before / (1 + eta * tau), rel=1e-6)
    if eta * tau > 0.39:
        assert distances[-1] < 1e-5
    at_target = policy_of(target.tolist())
    assert residuals_of(at_target, at_target, magnet, rewards, tau, eta)[0].abs().max() < 1e-9


def test_large_steps_are_those_of_the_fixed_target_and_small_ones_stay(start, magnet):
    rewards = REWARDS["real"]
    own, pull = start.log_probs().detach(), magnet.log_probs().detach()
    for eta in (1e12, 1e300):
        assert torch.allclose(mirror_reference(own, pull, TAU, eta), pull, atol=1e-9)
        assert mirror_beta(TAU, eta) == pytest.approx(TAU)
    for eta in (1e-12, 1e-300, 5e-324):
        for tau in (TAU, torch.full((len(SEQUENCES),), TAU)):
            assert torch.allclose(mirror_reference(own, pull, tau, eta), own, atol=1e-9)
            assert not (rewards / mirror_beta(tau, eta)).abs().gt(1e-9).any()
    for tau, expected in ((1e9, pull), (1e-9, own)):
        assert torch.allclose(mirror_reference(own, pull, tau, ETA), expected, atol=1e-6)


def test_each_completion_may_have_its_own_coefficient(start, magnet):
    """Rows of two roles in one call are what each role gets in a call of its own."""
    rewards, roles = REWARDS["real"], torch.arange(len(SEQUENCES)) % 2
    taus = torch.tensor([0.2, 3.0], dtype=torch.float64)[roles]
    own, pull = start.log_probs(), magnet.log_probs().detach()
    reference = mirror_reference(own.detach(), pull, taus, ETA)
    betas = mirror_beta(taus, ETA)
    ratios = log_ratio(own, reference, MASK, length_normalized=False)
    log_partition = group_log_partition(ratios, rewards, betas, roles, roles >= 0)
    outputs = TrajectoryBalance(99.0, length_normalized=False)(
        LossInputs(own, reference, MASK, rewards, log_partition, torch.tensor(1.0), beta=betas)
    )
    gradients = torch.autograd.grad(outputs.loss, start.logits, retain_graph=True)[0]
    total, loss = torch.zeros_like(gradients), 0.0
    for role, tau in enumerate((0.2, 3.0)):
        rows = roles == role
        p, q = own[rows].masked_fill(~MASK[rows], 0).sum(1), pull[rows].masked_fill(~MASK[rows], 0).sum(1)
        gaps = p - (p.detach() + ETA * tau * q) / (1 + ETA * tau) - rewards[rows] * ETA / (1 + ETA * tau)
        squares = ((gaps - gaps.detach().mean()) ** 2).sum()
        loss += squares.item()
        total += torch.autograd.grad(squares, start.logits, retain_graph=True)[0]
    assert outputs.loss.item() == pytest.approx(loss, rel=1e-9)
    assert torch.allclose(gradients, total, atol=1e-9)


@pytest.mark.parametrize(("tau", "eta"), SETTINGS)
def test_at_its_start_a_step_is_a_share_of_the_way_to_the_fixed_target(tau, eta, start, magnet):
    """`eta tau / (1 + eta tau)` times the residual without mirror steps: with one update there is nothing else."""
    rewards = REWARDS["real"]
    found, _ = residuals_of(start, start, magnet, rewards, tau, eta)
    everything = torch.zeros(len(rewards), dtype=torch.long)
    ratios = log_ratio(start.log_probs(), magnet.log_probs(), MASK, length_normalized=False)
    constant = group_log_partition(ratios, rewards, tau, everything, everything == 0)
    plain = balance_residual(ratios, rewards, constant, tau)
    assert torch.allclose(found, eta * tau / (1 + eta * tau) * plain, rtol=1e-9, atol=1e-12)


def test_an_error_of_the_constant_grows_with_length_normalisation(start, magnet):
    """What the module says of it: `(1 + eta tau) / (eta tau)` times an error, as weights of the length."""
    rewards, error = REWARDS["real"].numpy(), 0.01
    lengths, pull = LENGTHS.numpy(), magnet.sequence_log_probs().detach().numpy()
    ends = []
    for c in (0.3, 0.3 + error):
        own = start.sequence_log_probs().detach().numpy()
        for _ in range(200):
            own = (own + ETA * TAU * pull) / (1 + ETA * TAU) + lengths * (rewards / mirror_beta(TAU, ETA) - c)
        ends.append(own)
    assert np.allclose(ends[1] - ends[0], -error * (1 + ETA * TAU) / (ETA * TAU) * lengths)


# ---------------------------------------------------------------------- a game


def mirror_descent(policies, magnets, taus, eta):
    """One step of both players of the coordination game, payoff 1 where they agree, from the expected payoffs."""
    found = []
    for i, tau in enumerate(taus):
        payoff = policies[1 - i]  # of each action: how often the other one takes it
        logits = (np.log(policies[i]) + eta * payoff + eta * tau * np.log(magnets[i])) / (1 + eta * tau)
        weights = np.exp(logits - logits.max())
        found.append(weights / weights.sum())
    return found


def fine_tuned(logits, magnet, payoff, tau, eta):
    """Logits after training on all actions, weighted as the policy plays them, until the residuals are 0."""
    logits = logits.clone().requires_grad_()
    start = logits.detach().log_softmax(-1)[:, None]
    reference = mirror_reference(start, magnet.log()[:, None], tau, eta)
    beta, mask, group = mirror_beta(tau, eta), torch.ones(2, 1), torch.zeros(2, dtype=torch.long)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        log_probs = logits.log_softmax(-1)[:, None]
        ratios = log_ratio(log_probs, reference, mask, length_normalized=False)
        constant = group_log_partition(ratios, payoff, beta, group, group == 0)
        loss = TrajectoryBalance(tau, length_normalized=False)(
            LossInputs(
                log_probs, reference, mask, payoff, constant, torch.tensor(2.0), beta=torch.full((2,), beta).double()
            )
        ).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


@pytest.mark.parametrize("taus", [(0.3, 0.3), (1.0, 1.0), (0.1, 3.0)])
def test_fine_tuning_of_two_players_follows_the_mirror_steps(taus):
    magnets = [np.array([0.7, 0.3]), np.array([0.5, 0.5])]
    policies = [np.array([0.35, 0.65]), np.array([0.6, 0.4])]
    logits = [torch.tensor(np.log(policy)) for policy in policies]
    eta = 0.5
    for _ in range(15):
        policies = mirror_descent(policies, magnets, taus, eta)
        payoffs = [logits[1].softmax(-1), logits[0].softmax(-1)]
        logits = [
            fine_tuned(own, torch.tensor(magnet), payoff, tau, eta)
            for own, magnet, payoff, tau in zip(logits, magnets, payoffs, taus, strict=True)
        ]
        for own, expected in zip(logits, policies, strict=True):
            assert own.softmax(-1).tolist() == pytest.approx(expected.tolist(), abs=1e-7)

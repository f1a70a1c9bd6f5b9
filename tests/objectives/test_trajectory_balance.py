"""
Trajectory balance on a policy whose sequences can all be enumerated: expectations are sums, without any noise.

The policy is a table of logits for each prefix. Sequences have one to three tokens; the first token of the vocabulary
ends them. No function of the package computes what is expected here.
"""

import math

import pytest
import torch

from trl_fork.objectives import (
    LossInputs,
    TrajectoryBalance,
    balance_loss,
    balance_residual,
    effective_sample_size,
    fit_log_partition,
    group_log_partition,
    importance_ratio,
    log_ratio,
    proposal_log_partition,
    proposal_standard_error,
    with_weighted_gradient,
)


VOCABULARY, LONGEST, BETA = 3, 3, 0.5
STOP = 0


def sequences(prefix=()):
    for token in range(VOCABULARY):
        sequence = (*prefix, token)
        if token == STOP or len(sequence) == LONGEST:
            yield sequence
        else:
            yield from sequences(sequence)


SEQUENCES = list(sequences())
PREFIXES = sorted({sequence[:t] for sequence in SEQUENCES for t in range(len(sequence))})
LENGTHS = torch.tensor([len(sequence) for sequence in SEQUENCES], dtype=torch.float64)
MASK = torch.arange(LONGEST) < LENGTHS[:, None]
# Rewards of all kinds; no two of the last ones are equal.
REWARDS = {
    "binary": torch.tensor([float(sum(sequence) % 3 == 0) for sequence in SEQUENCES], dtype=torch.float64),
    "real": torch.tensor([math.sin(1.7 * n) for n in range(len(SEQUENCES))], dtype=torch.float64),
}


class Table:
    """A policy: logits of the next token after each prefix."""

    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(len(PREFIXES), VOCABULARY, generator=draw, dtype=torch.float64).requires_grad_()

    def log_probs(self):
        """Of the tokens of all sequences, shape `(sequences, LONGEST)`; garbage after their end."""
        table = self.logits.log_softmax(-1)
        rows = []
        for s in SEQUENCES:
            values = [table[PREFIXES.index(s[:t]), token] for t, token in enumerate(s)]
            rows.append(torch.stack(values + [torch.tensor(-99.0, dtype=torch.float64)] * (LONGEST - len(s))))
        return torch.stack(rows)

    def sequence_log_probs(self):
        return self.log_probs().masked_fill(~MASK, 0.0).sum(-1)


def at_target(reference, rewards, length_normalized):
    """The table whose distribution is the target exactly, by the total weights of the continuations of a prefix."""
    weights = reference.sequence_log_probs().exp().detach()
    c = constant(reference, rewards, length_normalized)
    tilt = LENGTHS * (rewards / BETA - c) if length_normalized else rewards / BETA - c
    weights = weights * tilt.exp()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    target = Table(0)
    with torch.no_grad():
        for number, prefix in enumerate(PREFIXES):
            for token in range(VOCABULARY):
                below = [
                    w for s, w in zip(SEQUENCES, weights, strict=True) if s[: len(prefix) + 1] == (*prefix, token)
                ]
                target.logits[number, token] = torch.stack(below).sum().log()
    return target


def constant(reference, rewards, length_normalized):
    """`log Z`, or the root of the length-normalised constant by bisection over Python floats."""
    probabilities = reference.sequence_log_probs().exp().tolist()

    def total(c):
        return sum(
            p * math.exp((n if length_normalized else 1) * (r / BETA - c))
            for p, n, r in zip(probabilities, LENGTHS.tolist(), rewards.tolist(), strict=True)
        )

    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) > 1 else (low, middle)
    return low


def expected_gradient(policy, reference, rewards, log_partition, length_normalized=True, weights=None, inside=False):
    """Gradient of the expected loss, sequences drawn by the policy, which is not differentiated as a sampler."""
    log_probs, ref = policy.log_probs(), reference.log_probs().detach()
    if inside:  # what must not be done
        ratios = ((log_probs - ref) * weights).masked_fill(~MASK, 0.0).sum(-1) / (LENGTHS if length_normalized else 1)
        losses = (log_partition + ratios - rewards / BETA) ** 2
    else:
        ratios = log_ratio(with_weighted_gradient(log_probs, weights), ref, MASK, length_normalized=length_normalized)
        losses = balance_loss(balance_residual(ratios, rewards, torch.full_like(rewards, log_partition), BETA))
    probabilities = policy.sequence_log_probs().exp().detach()
    return torch.autograd.grad((probabilities * losses).sum(), policy.logits)[0]


@pytest.fixture
def policy():
    return Table(3)


@pytest.fixture
def reference():
    return Table(4)


# ---------------------------------------------------------------------- the loss


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=list(REWARDS))
@pytest.mark.parametrize("length_normalized", [True, False])
def test_residuals_are_0_at_the_target(length_normalized, rewards, reference):
    target = at_target(reference, rewards, length_normalized)
    c = constant(reference, rewards, length_normalized)
    ratios = log_ratio(target.log_probs(), reference.log_probs(), MASK, length_normalized=length_normalized)
    residuals = balance_residual(ratios, rewards, torch.full_like(rewards, c), BETA)
    assert residuals.abs().max() < 1e-12


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=list(REWARDS))
@pytest.mark.parametrize("length_normalized", [True, False])
def test_weights_of_tokens_leave_the_target_where_it_is(length_normalized, rewards, policy, reference):
    """Weights of the gradient do; weights inside the residual move it."""
    draw = torch.Generator().manual_seed(6)
    mask = (torch.rand(MASK.shape, generator=draw) < 0.5).double()
    target = at_target(reference, rewards, length_normalized)
    c = constant(reference, rewards, length_normalized)
    for weights in (None, mask, torch.rand(MASK.shape, generator=draw, dtype=torch.float64)):
        found = expected_gradient(target, reference, rewards, c, length_normalized, weights)
        assert found.abs().max() < 1e-12
        elsewhere = expected_gradient(policy, reference, rewards, c, length_normalized, weights)
        assert elsewhere.abs().max() > 1e-2
    assert expected_gradient(target, reference, rewards, c, length_normalized, mask, inside=True).abs().max() > 5e-3


def test_gradient_is_that_of_a_policy_gradient(policy, reference):
    """`2 residual / |y| * sum m grad log pi`, and the value of the residual does not depend on `m`."""
    weights = torch.tensor([[0.3, 1.7, 0.0]], dtype=torch.float64)
    rewards = REWARDS["real"]
    log_probs, ref = policy.log_probs(), reference.log_probs().detach()
    plain = log_ratio(log_probs, ref, MASK)
    weighted = log_ratio(with_weighted_gradient(log_probs, weights), ref, MASK)
    assert torch.equal(plain, weighted)
    residuals = (0.4 + plain - rewards / BETA).detach()
    surrogate = 2 * residuals / LENGTHS * (weights * log_probs).masked_fill(~MASK, 0.0).sum(-1)
    expected = torch.autograd.grad(surrogate.sum(), policy.logits, retain_graph=True)[0]
    losses = balance_loss(balance_residual(weighted, rewards, torch.full_like(rewards, 0.4), BETA))
    assert torch.allclose(torch.autograd.grad(losses.sum(), policy.logits)[0], expected, atol=1e-12)


@pytest.mark.parametrize("error", [0.5, -1.3])
def test_an_error_of_the_constant_is_a_bias_of_length(error, policy, reference):
    """It adds `2 error grad E[1 / |y|]` to the expected gradient, and nothing without length normalisation."""
    rewards = REWARDS["real"]
    for length_normalized in (True, False):
        before, after = (
            expected_gradient(policy, reference, rewards, c, length_normalized) for c in (0.7, 0.7 + error)
        )
        scale = 1 / LENGTHS if length_normalized else torch.ones_like(LENGTHS)
        mean = (policy.sequence_log_probs().exp() * scale).sum()
        expected = 2 * error * torch.autograd.grad(mean, policy.logits)[0]
        assert torch.allclose(after - before, expected, atol=1e-12)
        assert (expected.abs().max() > 0.01) == length_normalized


def test_importance_ratios(policy, reference):
    """Of whole completions; garbage beyond their end is not read; without a gradient."""
    ratios = importance_ratio(policy.log_probs(), reference.log_probs(), MASK, maximum=2.0)
    exact = (policy.sequence_log_probs() - reference.sequence_log_probs()).exp()
    assert not ratios.requires_grad and exact.max() > 2 and exact.min() < 1
    assert torch.allclose(ratios, exact.clamp(max=2.0), atol=1e-12)
    # With the largest ratio out of the way, sampling by one policy gives the expectation under the other.
    squares = REWARDS["real"] ** 2
    weights = importance_ratio(policy.log_probs(), reference.log_probs(), MASK, maximum=math.inf)
    sampled = (reference.sequence_log_probs().exp() * balance_loss(REWARDS["real"], weights)).sum()
    assert sampled.item() == pytest.approx((policy.sequence_log_probs().exp() * squares).sum().item(), abs=1e-12)


def test_the_objective_leaves_out_what_does_not_count(policy, reference):
    """Rows without a valid token, and rows with a reward of NaN: neither their values nor their gradients are read."""
    mask, rewards = MASK.clone(), REWARDS["real"].clone()
    mask[2], rewards[5] = False, math.nan
    log_probs = policy.log_probs()
    inputs = LossInputs(
        log_probs=log_probs,
        ref_log_probs=reference.log_probs().detach(),
        mask=mask.long(),
        rewards=rewards,
        log_partition=torch.linspace(-1, 1, len(rewards), dtype=torch.float64).index_fill(
            0, torch.tensor(5), math.inf
        ),
        normalizer=torch.tensor(4.0),
        old_log_probs=Table(9).log_probs().detach(),
        weights=torch.full((len(rewards), 1), 0.5, dtype=torch.float64),
    )
    outputs = TrajectoryBalance(BETA, length_normalized=False, max_importance_ratio=1.5)(inputs)
    counted = [n for n in range(len(rewards)) if n not in (2, 5)]
    old = Table(9).sequence_log_probs().exp().tolist()
    new, ref = (table.sequence_log_probs().exp().tolist() for table in (policy, reference))
    ratios = [new[n] / old[n] for n in counted]
    residuals = [
        inputs.log_partition[n].item() + math.log(new[n] / ref[n]) - rewards[n].item() / BETA for n in counted
    ]
    expected = sum(min(w, 1.5) * d**2 for w, d in zip(ratios, residuals, strict=True)) / 4
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-12)
    assert outputs.metrics["balance/residual_mean"].tolist() == pytest.approx(residuals)
    assert outputs.metrics["balance/importance_ratio_max"].tolist() == pytest.approx(ratios)
    assert outputs.metrics["balance/clipped_fraction"].tolist() == [float(w > 1.5) for w in ratios]
    gradient = torch.autograd.grad(outputs.loss, log_probs)[0]
    assert not gradient[[2, 5]].any() and not gradient.isnan().any() and gradient[counted].any(1).all()
    assert not gradient[~MASK].any()


# ---------------------------------------------------------------------- the constant


def proposal_of(policy, reference, rewards):
    """Every sequence once, and weights that make their mean the expectation over the proposal."""
    log_q = policy.sequence_log_probs().detach()
    return reference.sequence_log_probs().detach(), log_q, rewards


@pytest.mark.parametrize(("right", "samples"), [(0, 8), (3, 8), (8, 8), (1, 1000), (999, 1000)])
@pytest.mark.parametrize("beta", [0.0667, 0.5, 3.0])
def test_binary_rewards_of_the_reference_have_a_closed_form(beta, right, samples):
    rewards = torch.tensor([1.0] * right + [0.0] * (samples - right))
    log_probs = -torch.arange(samples) / 7
    share = right / samples
    expected = math.log(1 - share + share * math.exp(1 / beta))
    found = proposal_log_partition(log_probs, log_probs, rewards, beta)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(expected, abs=1e-12)
    for equal in (0.0, -731.3):
        assert effective_sample_size(torch.full((samples,), equal)).item() == samples


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=list(REWARDS))
@pytest.mark.parametrize("length_normalized", [True, False])
def test_proposals_give_the_constant_of_the_reference(length_normalized, rewards, policy, reference):
    """An expectation over the proposal: sequences as often as they are drawn, 2 ** 20 of them, without noise."""
    ref, log_q, _ = proposal_of(policy, reference, rewards)
    counts = (log_q.exp() * 2**20).round().long()
    # The rounding of the counts is taken out: the proposal is the distribution of the counts itself.
    log_q = (counts.double() / counts.sum()).log()
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    lengths = LENGTHS[rows] if length_normalized else None
    found = proposal_log_partition(ref[rows], log_q[rows], rewards[rows], BETA, lengths)
    assert found.item() == pytest.approx(constant(reference, rewards, length_normalized), abs=1e-9)


def test_the_estimate_of_z_is_unbiased(policy, reference):
    """Over all pairs of sequences that the proposal may draw, `exp(log Z)` has the mean `Z`; `log Z` is too small."""
    rewards = REWARDS["real"]
    ref, log_q, _ = proposal_of(policy, reference, rewards)
    first, second = torch.cartesian_prod(torch.arange(len(ref)), torch.arange(len(ref))).T
    pairs = torch.stack([first, second], dim=1)
    found = proposal_log_partition(ref[pairs], log_q[pairs], rewards[pairs], BETA)
    shares = log_q[pairs].sum(1).exp()
    exact = constant(reference, rewards, False)
    assert (shares * found.exp()).sum().item() == pytest.approx(math.exp(exact), rel=1e-12)
    assert (shares * found).sum().item() < exact - 1e-3


def test_the_root_is_a_root_at_any_scale():
    """Of log-probabilities as of thousands of tokens, and of FlowRL's beta."""
    draw = torch.Generator().manual_seed(8)
    lengths = torch.randint(1, 4000, (5, 16), generator=draw)
    rewards = torch.rand(5, 16, generator=draw)
    ref = -lengths * (0.3 + torch.rand(5, 16, generator=draw))
    log_q = ref - torch.randn(5, 16, generator=draw) * 30
    for beta in (0.0667, 1.0):
        found = proposal_log_partition(ref, log_q, rewards, beta, lengths)
        exponents = ref.double() - log_q.double() + lengths * (rewards.double() / beta - found[:, None])
        assert (exponents.logsumexp(-1) - math.log(16)).abs().max() < 1e-8


def test_without_length_normalisation_the_reference_is_the_proposal_of_a_star_po():
    """TRL's `experimental.a2po`: `V* = beta1 * log mean exp(r / beta1)`, which is `beta log Z`."""
    rewards = torch.tensor([[0.0, 0.3, 1.0, 0.7], [0.2, 0.1, 0.9, 0.4]], dtype=torch.float64)
    beta1 = 0.5
    v_star = beta1 * (torch.logsumexp(rewards / beta1, dim=1) - math.log(rewards.shape[1]))
    log_probs = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(beta1 * proposal_log_partition(log_probs, log_probs, rewards, beta1), v_star, atol=1e-12)


def test_effective_sample_size():
    weights = torch.tensor([[0.1, 0.4, 0.7, 2.3], [1e-30, 1e-30, 1e-30, 5.0]], dtype=torch.float64)
    expected = weights.sum(1) ** 2 / (weights**2).sum(1)
    assert torch.allclose(effective_sample_size(weights.log()), expected)
    assert torch.allclose(effective_sample_size(weights.log() - 5000), expected)


@pytest.mark.parametrize("length_normalized", [True, False])
def test_standard_error_is_that_of_many_estimates(length_normalized, policy, reference):
    rewards = REWARDS["real"]
    ref, log_q, _ = proposal_of(policy, reference, rewards)
    draw = torch.Generator().manual_seed(12)
    rows = torch.multinomial(log_q.exp().expand(4000, -1), 64, replacement=True, generator=draw)
    arguments = (ref[rows], log_q[rows], rewards[rows], BETA, LENGTHS[rows] if length_normalized else None)
    spread = proposal_log_partition(*arguments).std().item()
    assert proposal_standard_error(*arguments).mean().item() == pytest.approx(spread, rel=0.05)


def test_standard_error_knows_nothing_of_what_was_not_sampled():
    log_probs = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    assert not proposal_standard_error(log_probs, log_probs, torch.zeros(3, 8), BETA).any()
    assert proposal_standard_error(log_probs[:, :1], log_probs[:, :1], torch.ones(3, 1), BETA).isnan().all()


# ---------------------------------------------------------------------- groups


def test_estimate_of_a_group_is_the_mean_gap_of_what_counts():
    ratios = torch.tensor([0.1, -0.3, 0.7, 0.2, -0.5, 0.9])
    rewards = torch.tensor([1.0, 0.4, math.nan, 0.3, 0.8, 0.6])
    groups = torch.tensor([7, 3, 3, 7, 3, 5])
    counted = torch.tensor([True, True, False, True, True, False])
    found = group_log_partition(ratios.requires_grad_(), rewards, BETA, groups, counted)
    of_7 = ((1.0 / BETA - 0.1) + (0.3 / BETA - 0.2)) / 2
    of_3 = ((0.4 / BETA + 0.3) + (0.8 / BETA + 0.5)) / 2
    assert found.tolist() == pytest.approx([of_7, of_3, of_3, of_7, of_3, 0.0])
    assert not found.requires_grad


def test_the_mean_of_a_group_cancels():
    """Residuals of a group have mean 0, and are those of the distances of the rewards from their mean."""
    draw = torch.Generator().manual_seed(5)
    ratios, rewards = torch.randn(12, generator=draw).double(), torch.rand(12, generator=draw).double()
    groups, counted = torch.arange(12) // 4, torch.ones(12, dtype=torch.bool)
    centred = rewards - rewards.view(3, 4).mean(1).repeat_interleave(4)
    residuals = [
        balance_residual(ratios, r, group_log_partition(ratios, r, BETA, groups, counted), BETA)
        for r in (rewards, centred)
    ]
    assert torch.allclose(*residuals, atol=1e-12)
    assert residuals[0].view(3, 4).mean(1).abs().max() < 1e-12


@pytest.mark.parametrize("length_normalized", [True, False])
def test_estimate_of_a_group_at_the_target_is_the_constant(length_normalized, reference):
    rewards = REWARDS["real"]
    target = at_target(reference, rewards, length_normalized)
    ratios = log_ratio(target.log_probs(), reference.log_probs(), MASK, length_normalized=length_normalized)
    everything = torch.zeros(len(rewards), dtype=torch.long)
    found = group_log_partition(ratios, rewards, BETA, everything, everything == 0)
    assert torch.allclose(found, torch.full_like(found, constant(reference, rewards, length_normalized)), atol=1e-12)


# ---------------------------------------------------------------------- regression


@pytest.mark.parametrize(("prompts", "width"), [(20, 4), (5, 9)], ids=["more prompts", "more width"])
def test_fit_is_the_solution_of_its_normal_equations(prompts, width):
    """Ridge on the slope alone: an intercept without a penalty in a system with one column more."""
    draw = torch.Generator().manual_seed(prompts)
    states, values = torch.randn(prompts, width, generator=draw) + 3, torch.randn(prompts, generator=draw)
    fit = fit_log_partition(states, values, ridge=0.7)
    design = torch.cat([states.double(), torch.ones(prompts, 1).double()], dim=1)
    penalty = torch.diag(torch.tensor([0.7] * width + [0.0], dtype=torch.float64))
    solution = torch.linalg.solve(design.T @ design + penalty, design.T @ values.double())
    unseen = torch.randn(6, width, generator=draw)
    expected = torch.cat([unseen.double(), torch.ones(6, 1).double()], dim=1) @ solution
    assert torch.allclose(fit(unseen), expected, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan, math.inf])
def test_fit_needs_a_penalty(ridge):
    with pytest.raises(ValueError, match="ridge must be a positive number, got"):
        fit_log_partition(torch.ones(3, 2), torch.ones(3), ridge=ridge)

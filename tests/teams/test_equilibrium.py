"""Quantal response equilibria against closed forms and solvers of scipy that know nothing of this package."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog, minimize, root

from trl_fork.teams import (
    Equilibrium,
    contraction,
    local_contraction,
    mirror_step,
    quantal_response,
    solve_hqre,
)


MATCH = np.eye(2)
PENNIES = np.array([[1.0, -1.0], [-1.0, 1.0]])
BIASED_RPS = np.array([[0.0, -1.0, 2.0], [1.0, 0.0, -1.0], [-1.0, 3.0, 0.0]])
PRISONERS = np.array([[3.0, 0.0], [5.0, 1.0]])
STAG = np.array([[4.0, 1.0], [3.0, 3.0]])
SHAPLEY = [np.eye(3), np.eye(3)[[2, 0, 1]]]


# ---------------------------------------------------------------------- oracles


def naive_values(payoffs, policies, agent):
    """Q of each action of an agent, by a sum over all profiles."""
    values = np.zeros(len(policies[agent]))
    for profile in itertools.product(*(range(len(policy)) for policy in policies)):
        others = [policy[a] for i, (policy, a) in enumerate(zip(policies, profile, strict=True)) if i != agent]
        values[profile[agent]] += np.prod(others) * payoffs[agent][profile]
    return values


def naive_response(values, temperature, magnet):
    weights = np.where(magnet > 0, magnet * np.exp((values - max(values[magnet > 0])) / temperature), 0.0)
    return weights / weights.sum()


def naive_residual(payoffs, policies, temperatures, magnets):
    return max(
        abs(policies[i] - naive_response(naive_values(payoffs, policies, i), temperatures[i], magnets[i])).max()
        for i in range(len(policies))
    )


def uniform(payoffs):
    return [np.full(size, 1 / size) for size in payoffs[0].shape]


def check(payoffs, temperatures, magnets=None, **options) -> Equilibrium:
    """Solve, and measure the residual with the oracle."""
    found = solve_hqre(payoffs, temperatures, magnets=magnets, **options)
    taus = np.broadcast_to(temperatures, (len(payoffs),))
    magnets = uniform(payoffs) if magnets is None else magnets
    residual = naive_residual(payoffs, found.policies, taus, magnets)
    assert found.converged and found.residual <= 1e-10
    assert residual <= 1e-10 + 1e-14 * max(abs(p).max() for p in payoffs) / min(taus)
    for policy in found.policies:
        assert policy.min() >= 0 and policy.sum() == pytest.approx(1, abs=1e-12)
    for agent, (policy, magnet) in enumerate(zip(found.policies, magnets, strict=True)):
        earned = policy @ naive_values(payoffs, found.policies, agent)
        used = policy > 0
        divergence = (policy[used] * np.log(policy[used] / magnet[used])).sum()
        assert found.expected_payoffs[agent] == pytest.approx(earned, rel=1e-9, abs=1e-9)
        assert found.values[agent] == pytest.approx(earned - taus[agent] * divergence, rel=1e-9, abs=1e-9)
    return found


# ---------------------------------------------------------------------- responses and steps


def test_quantal_response_of_shapes_priors_and_extreme_numbers():
    values = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    prior = np.array([0.2, 0.0, 0.8])
    got = quantal_response(values, [0.5, 2.0], prior)
    for row, tau, want in zip(values, (0.5, 2.0), got, strict=True):
        weights = np.exp((row + tau * np.log(np.where(prior > 0, prior, 1))) / tau) * (prior > 0)
        assert want == pytest.approx(weights / weights.sum(), abs=1e-14)
    assert (got[:, 1] == 0).all()
    assert quantal_response([1e6, 0.0], 1e-6).tolist() == [1.0, 0.0]
    assert quantal_response([1e10, 0.0, -1e10], 1e-300, [0.0, 0.5, 0.5]).tolist() == [0.0, 1.0, 0.0]
    as_tensor = quantal_response(torch.tensor([1.0, 0.0], dtype=torch.bfloat16, requires_grad=True), torch.tensor(0.5))
    assert as_tensor.dtype == np.float64 and as_tensor[0] == pytest.approx(1 / (1 + np.exp(-2)))


def test_mirror_step_is_the_maximiser_that_it_is_derived_from():
    """argmax of eta <pi, Q> - eta tau KL(pi || rho) - KL(pi || policy), by scipy."""
    rng = np.random.default_rng(0)
    policy, magnet, values = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4)), rng.normal(size=4)
    eta, tau = 0.7, 0.4

    def loss(logits):
        p = np.exp(logits) / np.exp(logits).sum()
        return -(eta * p @ values - eta * tau * p @ np.log(p / magnet) - p @ np.log(p / policy))

    logits = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-10}).x
    want = np.exp(logits) / np.exp(logits).sum()
    assert mirror_step(policy, values, eta, tau, magnet) == pytest.approx(want, abs=1e-6)


def test_mirror_step_without_temperature_is_multiplicative_weights():
    policy, values = np.array([0.2, 0.3, 0.5]), np.array([1.0, 0.0, -1.0])
    want = policy * np.exp(0.5 * values)
    assert mirror_step(policy, values, 0.5, 0.0) == pytest.approx(want / want.sum(), abs=1e-15)
    # The magnet is not read then, and a prompt of probability 0 keeps it
    assert mirror_step([0.5, 0.5, 0.0], values, 1.0, 0.0, [0.0, 0.0, 1.0])[2] == 0.0


def test_mirror_step_stays_at_the_quantal_response_and_goes_there():
    values, magnet = [0.3, 1.0, -0.4], [0.5, 0.2, 0.3]
    fixed = quantal_response(values, 0.3, magnet)
    assert mirror_step(fixed, values, 2.0, 0.3, magnet) == pytest.approx(fixed, abs=1e-15)
    policy = np.full(3, 1 / 3)
    for _ in range(100):
        policy = mirror_step(policy, values, 2.0, 0.3, magnet)
    assert policy == pytest.approx(fixed, abs=1e-12)
    both = mirror_step([policy, policy], [values, values], 2.0, [0.3, 0.0], magnet)
    assert both.shape == (2, 3) and both[0] == pytest.approx(fixed, abs=1e-12)


def test_extreme_numbers_have_their_limits():
    half = [0.5, 0.5]
    for eta, tau in ((1e300, 1e300), (1e308, 0.5), (1e308, 1e308)):
        assert mirror_step(half, [1.0, 0.0], eta, tau) == pytest.approx(quantal_response([1.0, 0.0], tau), abs=1e-15)
    assert mirror_step([0.9, 0.1], [1.0, 0.0], 1e300, 1e300, [0.2, 0.8]) == pytest.approx([0.2, 0.8])
    # eta tau = 1, where the values weigh nothing: the geometric mean of policy and magnet
    assert mirror_step([0.9, 0.1], [1.0, 0.0], 1e-300, 1e300, [0.2, 0.8]) == pytest.approx([0.6, 0.4])
    assert mirror_step(half, [1e308, -1e308], 1e308, 0.0).tolist() == [1.0, 0.0]
    assert mirror_step(half, [1e308, -1e308], 1e-320, 1e308) == pytest.approx(half)
    for scale in (1e149, 1e-149):
        found = solve_hqre([[2 * scale, 0.0], [0.0, scale]], 1e-149, max_steps=2000)
        want = [1.0, 0.0] if scale > 1 else solve_hqre([[2.0, 0.0], [0.0, 1.0]], 1.0).policies[0]
        assert found.converged and found.policies[0] == pytest.approx(want, abs=1e-8)


def test_priors_in_coarse_types_are_normalised():
    logits = torch.linspace(0, 3, 50)
    for dtype in (torch.bfloat16, torch.float16):
        prior = torch.softmax(logits.to(dtype), 0)
        exact = prior.double().numpy()
        got = quantal_response(np.zeros(50), 1.0, prior)
        assert got.sum() == pytest.approx(1, abs=1e-14)
        assert got == pytest.approx(exact / exact.sum(), abs=1e-15)
    rows = torch.softmax(torch.tensor([1.0, 2.0, 3.0]).bfloat16(), 0)
    assert solve_hqre(np.ones((3, 3)), 1.0, magnets=[rows, rows]).policies[0].sum() == pytest.approx(1)


# ---------------------------------------------------------------------- coordination: the closed forms


def test_above_the_threshold_nobody_coordinates_and_below_the_start_decides():
    for start in (None, [[0.99, 0.01]] * 2, [[0.0, 1.0]] * 2, [[1.0, 0.0], [0.0, 1.0]]):
        found = check([MATCH, MATCH], [0.4, 0.7], start=start)
        assert np.stack(found.policies) == pytest.approx(np.full((2, 2), 0.5), abs=1e-6)
    # p = logistic((2 p - 1) / tau) has a root beside 0.5
    p = brentq(lambda x: x - 1 / (1 + np.exp(-(2 * x - 1) / 0.3)), 0.6, 1.0, xtol=1e-14)
    for sign, start in ((1, [0.6, 0.4]), (-1, [0.4, 0.6])):
        found = check([MATCH, MATCH], 0.3, start=[start, start])
        assert found.policies[0][0] == pytest.approx(p if sign > 0 else 1 - p, abs=1e-9)
    # Near the unstable one, but not at it
    assert check([MATCH] * 2, 0.3, start=[[0.5 + 1e-7, 0.5 - 1e-7], [0.5, 0.5]]).policies[1][0] == pytest.approx(p)
    assert check([MATCH] * 2, 0.3).policies[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("first", "second"), [(0.2, 1.24), (0.2, 1.26), (0.5, 0.49), (0.5, 0.51), (3.0, 0.08)])
def test_the_symmetric_point_contracts_above_a_quarter(first, second):
    radius = local_contraction(MATCH, [[0.5, 0.5]] * 2, [first, second], 0.01)
    assert (radius < 1) == (first * second > 0.25)


def test_the_magnet_breaks_the_tie():
    magnets = [np.array([0.7, 0.3])] * 2
    ends = [check([MATCH] * 2, 0.55, magnets, start=start) for start in (None, [[0.01, 0.99]] * 2)]
    for found in ends:
        assert [policy[0].round(2) for policy in found.policies] == [0.91, 0.91]
    mixed = check([MATCH] * 2, [0.1, 3.0], magnets)
    assert [policy[0].round(3) for policy in mixed.policies] == [0.998, 0.765]


def test_contraction_is_that_of_the_mirror_map():
    policies, steps = [np.array([0.6, 0.4]), np.array([0.55, 0.45])], []
    for _ in range(60):
        steps.append(policies)
        values = [MATCH @ policies[1], MATCH.T @ policies[0]]
        policies = [mirror_step(p, v, 0.5, 1.0) for p, v in zip(policies, values, strict=True)]
    want = (1 + 0.5 / 2) / (1 + 0.5 * 1.0)
    assert contraction(steps)[-1] == pytest.approx(want, abs=1e-4)
    assert local_contraction(MATCH, [[0.5, 0.5]] * 2, 1.0, 0.5) == pytest.approx(want, abs=1e-12)
    # By hand: a factor of one half, in an array, a list and a dictionary
    for wrap in (np.array, lambda x: [np.array(x)], lambda x: {"role": x}):
        assert contraction([wrap([1 - 0.5**k, 0.5**k]) for k in range(4)]) == pytest.approx([0.5, 0.5])
    assert np.isnan(contraction([[0.5, 0.5]] * 3)).all()


def test_local_contraction_is_the_jacobian_by_differences():
    rng = np.random.default_rng(3)
    payoffs = [rng.normal(size=(2, 3)), rng.normal(size=(2, 3))]
    taus, magnets, eta = [0.6, 1.1], [np.array([0.3, 0.7]), np.array([0.5, 0.0, 0.5])], 0.8
    found = solve_hqre(payoffs, taus, magnets=magnets)

    def step(free):
        policies = [np.array([free[0], 1 - free[0]]), np.array([free[1], 0.0, 1 - free[1]])]
        return np.array(
            [
                mirror_step(policies[i], naive_values(payoffs, policies, i), eta, taus[i], magnets[i])[0]
                for i in range(2)
            ]
        )

    at = np.array([found.policies[0][0], found.policies[1][0]])
    jacobian = np.stack([(step(at + h) - step(at - h)) / 2e-6 for h in 1e-6 * np.eye(2)], axis=1)
    got = local_contraction(payoffs, found.policies, taus, eta, magnets=magnets)
    assert got == pytest.approx(abs(np.linalg.eigvals(jacobian)).max(), abs=1e-6)


# ---------------------------------------------------------------------- games


GAMES = {
    "pennies": [PENNIES, -PENNIES],
    "biased pennies": [PENNIES * [[3, 1], [1, 1]], -PENNIES * [[3, 1], [1, 1]]],
    "rock paper scissors": [BIASED_RPS, -BIASED_RPS],
    "prisoners": [PRISONERS, PRISONERS.T],
    "stag hunt": [STAG, STAG.T],
    "coordination": [MATCH, MATCH],
    "shapley": SHAPLEY,
    "one action": [np.array([[1.0, 2.0, 0.0]]), np.array([[0.0, 1.0, 5.0]])],
    "three players": [np.random.default_rng(i).normal(size=(2, 3, 2)) for i in range(3)],
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (100, 0), (1, 1000), (100, -1000)])
def test_known_games_at_temperatures_from_low_to_high(name, scale, shift):
    payoffs = [scale * payoff + shift for payoff in GAMES[name]]
    for tau in (0.1, 0.5, 5.0):
        check(payoffs, tau * scale)
    check(payoffs, np.geomspace(0.05, 5, len(payoffs)) * scale, start=[np.eye(s)[0] for s in payoffs[0].shape])


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    common=st.booleans(),
    zeros=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_games(seed, sizes, scale, common, zeros):
    rng = np.random.default_rng(seed)
    payoffs = [scale * rng.normal(size=sizes)] * len(sizes)
    if not common:
        payoffs = [scale * rng.normal(size=sizes) for _ in sizes]
    taus = np.exp(rng.uniform(np.log(0.05), np.log(5), len(sizes)))
    magnets = [rng.dirichlet(np.ones(size)) for size in sizes]
    if zeros:
        for magnet in (magnet for magnet in magnets if len(magnet) > 1):
            magnet[rng.integers(len(magnet))] = 0.0
        magnets = [magnet / magnet.sum() for magnet in magnets]
    found = check(payoffs, taus, magnets)
    for policy, magnet in zip(found.policies, magnets, strict=True):
        assert (policy[magnet == 0] == 0).all()


def test_at_high_temperature_scipy_finds_the_same_point_from_anywhere():
    rng = np.random.default_rng(5)
    payoffs = [rng.normal(size=(3, 2, 2)) for _ in range(3)]
    taus, magnets = [2.0, 3.0, 2.5], [rng.dirichlet(np.ones(n)) for n in (3, 2, 2)]
    found = check(payoffs, taus, magnets)

    def gap(flat):
        policies = np.split(flat, [3, 5])
        answers = [naive_response(naive_values(payoffs, policies, i), taus[i], magnets[i]) for i in range(3)]
        return flat - np.concatenate(answers)

    for _ in range(4):
        start = np.concatenate([rng.dirichlet(np.ones(n)) for n in (3, 2, 2)])
        assert np.concatenate(found.policies) == pytest.approx(root(gap, start, tol=1e-12).x, abs=1e-9)


def test_a_zero_sum_game_has_the_saddle_point_of_the_regularised_payoff():
    """The first agent's policy by scipy: it maximises its payoff against the other's smooth best answer."""
    taus = (0.3, 0.7)

    def loss(logits):
        p = np.exp(logits) / np.exp(logits).sum()
        against = p @ BIASED_RPS
        answer = -taus[1] * np.log(
            np.exp(-against / taus[1]).mean()
        )  # min over q of <q, against> + tau KL(q || uniform)
        return -(answer - taus[0] * (p @ np.log(3 * p)))

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-10})
    found = check([BIASED_RPS, -BIASED_RPS], taus)
    assert found.policies[0] == pytest.approx(np.exp(best.x) / np.exp(best.x).sum(), abs=1e-6)
    value = found.expected_payoffs[0] - taus[0] * (found.policies[0] @ np.log(3 * found.policies[0]))
    value += taus[1] * (found.policies[1] @ np.log(3 * found.policies[1]))
    assert value == pytest.approx(-best.fun, abs=1e-9)


def test_at_low_temperature_a_zero_sum_game_is_played_at_its_value():
    rows = np.hstack([-BIASED_RPS.T, np.ones((3, 1))])  # v <= p @ each column
    plan = linprog([0, 0, 0, -1], rows, np.zeros(3), [[1, 1, 1, 0]], [1], bounds=[(0, 1)] * 3 + [(None, None)])
    found = check([BIASED_RPS, -BIASED_RPS], 0.002)
    assert found.expected_payoffs[0] == pytest.approx(-plan.fun, abs=0.01)
    assert found.policies[0] == pytest.approx(plan.x[:3], abs=0.01)


@pytest.mark.parametrize(
    ("payoff", "mixed"), [([[2, -1], [-1, 1]], [0.4, 0.6]), ([[0, -1, 2], [1, 0, -1], [-2, 1, 0]], [0.25, 0.5, 0.25])]
)
@pytest.mark.parametrize("tau", [1e-4, 1e-5])
def test_at_very_low_temperature_a_zero_sum_game_ends_near_its_mixed_equilibrium(payoff, mixed, tau):
    """The mixed equilibria by hand: they make the other indifferent."""
    payoff = np.array(payoff, dtype=float)
    found = check([payoff, -payoff], tau, max_steps=400)
    for policy in found.policies:
        assert policy == pytest.approx(mixed, abs=2 * tau)


def test_the_better_end_is_returned_when_no_end_is_within_the_tolerance():
    payoff = np.array([[2.0, -1.0], [-1.0, 1.0]])
    found = solve_hqre([payoff, -payoff], 1e-4, tolerance=1e-300, max_steps=400)
    assert not found.converged and found.residual < 1e-10
    assert found.policies[0] == pytest.approx([0.4, 0.6], abs=1e-3)


def test_a_common_payoff_a_list_of_payoffs_and_tensors_are_the_same_game():
    rng = np.random.default_rng(1)
    payoff = rng.normal(size=(2, 3))
    first = solve_hqre(payoff, 0.8)
    for same in (payoff.tolist(), torch.tensor(payoff, requires_grad=True), [payoff, payoff], [payoff.tolist()] * 2):
        again = solve_hqre(same, torch.tensor(0.8))
        assert np.concatenate(again.policies) == pytest.approx(np.concatenate(first.policies), abs=1e-6)
    three = rng.normal(size=(2, 2, 2))
    assert len(solve_hqre(three, 1.0).policies) == 3
    assert len(solve_hqre([1.0, 2.0], 1.0).policies) == 1


def test_plain_steps_of_a_given_size():
    found = solve_hqre([PENNIES, -PENNIES], 0.5, step_size=0.1, start=[[0.9, 0.1], [0.3, 0.7]], max_steps=600)
    assert found.converged and found.residual <= 1e-10
    policies = [np.array([0.9, 0.1]), np.array([0.3, 0.7])]
    for _ in range(7):
        values = [PENNIES @ policies[1], -PENNIES.T @ policies[0]]
        policies = [mirror_step(p, v, 0.1, 0.5) for p, v in zip(policies, values, strict=True)]
    cut = solve_hqre([PENNIES, -PENNIES], 0.5, step_size=0.1, start=[[0.9, 0.1], [0.3, 0.7]], max_steps=7)
    assert cut.num_steps == 7 and not cut.converged
    assert np.stack(cut.policies) == pytest.approx(np.stack(policies), abs=1e-12)
    # Too large a step: around and around
    around = solve_hqre([PENNIES, -PENNIES], 0.05, step_size=5.0, start=[[0.9, 0.1], [0.3, 0.7]], max_steps=600)
    assert not around.converged
    # A probability that has become too small for a float comes back
    far = solve_hqre([1000.0, 0.0], 1.0, step_size=1e6, start=[[0.0, 1.0]], magnets=[[1e-300, 1.0]])
    assert far.converged and far.policies[0][0] == pytest.approx(1.0)


@pytest.mark.parametrize("max_steps", [1, 2, 5, 20])
def test_a_solution_is_never_claimed_above_the_tolerance(max_steps):
    for payoffs in ([PENNIES * 100, -PENNIES * 100], SHAPLEY, [STAG, STAG.T]):
        start = [[0.9] + [0.1 / (payoffs[0].shape[0] - 1)] * (payoffs[0].shape[0] - 1)] * 2
        found = solve_hqre(payoffs, 0.05, start=start, max_steps=max_steps)
        assert found.num_steps <= max_steps
        real = naive_residual(payoffs, found.policies, [0.05] * 2, uniform(payoffs))
        assert found.residual == pytest.approx(real, rel=1e-6, abs=1e-12)
        assert found.converged == (found.residual <= 1e-10)


# ---------------------------------------------------------------------- Markov games


def markov(seed, sizes, num_states=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_states, *sizes)), rng.dirichlet(np.ones(num_states), size=(num_states, *sizes))


def test_one_agent_alone_is_soft_value_iteration():
    payoffs, transitions = markov(0, (4,))
    rng = np.random.default_rng(1)
    magnet, taus, discount = rng.dirichlet(np.ones(4), size=3), np.array([0.2, 1.0, 0.5]), 0.9
    values = np.zeros(3)
    for _ in range(2000):
        q = payoffs + discount * transitions @ values
        values = taus * np.log((magnet * np.exp(q / taus[:, None])).sum(-1))
    found = solve_hqre(payoffs, [taus], magnets=[magnet], transitions=transitions, discount=discount)
    assert found.converged
    assert found.values == pytest.approx(values[None], abs=1e-8)
    policy = magnet * np.exp((q - values[:, None]) / taus[:, None])
    assert found.policies[0] == pytest.approx(policy, abs=1e-8)
    moves = np.einsum("sa,sat->st", policy, transitions)
    earned = np.linalg.solve(np.eye(3) - discount * moves, (policy * payoffs).sum(-1))
    assert found.expected_payoffs == pytest.approx(earned[None], abs=1e-8)
    shifted = solve_hqre(payoffs + 1000, [taus], magnets=[magnet], transitions=transitions, discount=discount)
    assert shifted.values == pytest.approx(values[None] + 1000 / (1 - discount), abs=1e-7)


def test_a_markov_game_of_two_agents_by_iterated_values_in_plain_numpy():
    (payoff, transitions), other = markov(2, (2, 3)), markov(3, (2, 3))[0]
    payoffs, taus, discount = [payoff, other], np.array([[1.0, 2.0, 1.5], [2.0, 1.0, 3.0]]), 0.5
    policies, values = [np.full((3, 2), 1 / 2), np.full((3, 3), 1 / 3)], np.zeros((2, 3))
    for _ in range(4000):
        news = []
        for i in range(2):
            q = payoffs[i] + discount * transitions @ values[i]
            q = np.einsum("sab,sb->sa", q, policies[1]) if i == 0 else np.einsum("sab,sa->sb", q, policies[0])
            weights = np.exp(q / taus[i][:, None])
            news.append(weights / weights.sum(-1, keepdims=True))
            here = (policies[i] * q).sum(-1)
            values[i] = here - taus[i] * (policies[i] * np.log(policies[i] * policies[i].shape[1])).sum(-1)
        policies = [0.7 * old + 0.3 * new for old, new in zip(policies, news, strict=True)]
    found = solve_hqre(payoffs, taus, transitions=transitions, discount=discount)
    assert found.converged and found.values.shape == (2, 3)
    assert found.values == pytest.approx(values, abs=1e-8)
    for got, want in zip(found.policies, policies, strict=True):
        assert got == pytest.approx(want, abs=1e-8)


def test_states_that_do_not_follow_each_other_are_games_of_their_own():
    payoffs = np.stack([MATCH, 2 * MATCH])
    stay = np.zeros((2, 2, 2, 2))
    stay[0, ..., 0] = stay[1, ..., 1] = 1
    magnets = [np.tile([0.7, 0.3], (2, 1))] * 2
    found = solve_hqre(payoffs, [[0.55, 0.55], [0.6, 0.6]], magnets=magnets, transitions=stay)
    for state, taus in ((0, [0.55, 0.6]), (1, [0.55, 0.6])):
        alone = solve_hqre(payoffs[state], taus, magnets=[[0.7, 0.3]] * 2)
        for got, want in zip(found.policies, alone.policies, strict=True):
            assert got[state] == pytest.approx(want, abs=1e-8)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[1.0, np.nan], [0, 1]], 1.0), {}, r"payoffs must be finite, got nan at \[0, 1\]"),
        (([[1.0, 2.0], [0]], 1.0), {}, "payoffs must be numbers in the shape of an array"),
        (("good", 1.0), {}, "payoffs must be numbers"),
        ((np.array(1.0), 1.0), {}, "payoffs must have an axis for each agent"),
        ((np.zeros((2, 0)), 1.0), {}, "payoffs must have an action for each agent"),
        (([np.eye(2), np.eye(3)], 1.0), {}, r"payoffs\[1\] must have the shape of payoffs\[0\]"),
        (([np.eye(2)] * 3, 1.0), {}, r"payoffs\[0\] must have an axis for each of the 3 agents"),
        ((MATCH, 0.0), {}, "temperatures must be above 0, got 0.0"),
        ((MATCH, [1.0, -2.0]), {}, r"temperatures\[1\] must be above 0, got -2.0"),
        ((MATCH, [1.0, np.inf]), {}, r"temperatures\[1\] must be finite"),
        ((MATCH, [1.0, 1.0, 1.0]), {}, "one number, or a list with an entry for each of the 2 agents, got 3 entries"),
        ((MATCH, [[1.0, 1.0], [1.0, 1.0]]), {}, r"temperatures\[0\] must be one number, got the shape \(2,\)"),
        ((MATCH, 1.0), {"magnets": [[0.5, 0.5], [0.5, 0.6]]}, r"magnets\[1\] must sum to 1 .*got 1.1"),
        ((MATCH, 1.0), {"magnets": [[1.5, -0.5], [0.5, 0.5]]}, r"magnets\[0\] must not be negative, got -0.5"),
        (
            (MATCH, 1.0),
            {"magnets": [[0.5, 0.5]]},
            "magnets must be a list with an entry for each of the 2 agents, got 1",
        ),
        (
            (MATCH, 1.0),
            {"magnets": [[0.5, 0.5], [0.2, 0.3, 0.5]]},
            r"magnets\[1\] must have the shape \(2,\), .* got \(3,\)",
        ),
        ((MATCH, 1.0), {"start": [[0.5, 0.5], [0.5, 0.4]]}, r"start\[1\] must sum to 1"),
        ((MATCH, 1.0), {"magnets": [0.5, 0.5]}, r"magnets\[0\] must have the shape \(2,\), .* got \(\)"),
        ((MATCH, 1.0), {"magnets": [[0.5], [0.5]]}, r"magnets\[0\] must have the shape \(2,\), .* got \(1,\)"),
        ((MATCH, 1.0), {"magnets": 0.5}, "magnets must be a list with an entry for each of the 2 agents.*, got 0.5"),
        ((MATCH, [1.0, [1.0, 2.0]]), {}, r"temperatures\[1\] must be one number, got the shape \(2,\)"),
        ((MATCH, "hot"), {}, "temperatures must be numbers"),
        ((MATCH, None), {}, "temperatures must be numbers.*, got None"),
        ((MATCH, {"a": 1.0, "b": 1.0}), {}, "temperatures must be one number, or a list .* in the order of the axes"),
        ((MATCH, True), {}, "temperatures must be numbers.*, got True"),
        ((MATCH, [1.0, "1"]), {}, r"temperatures\[1\] must be numbers.*, got '1'"),
        (([[True, 0.5], [0, 1]], 1.0), {}, "payoffs must be numbers.*, got True"),
        (([["1", 0.5], [0, 1]], 1.0), {}, "payoffs must be numbers.*, got '1'"),
        ((np.eye(2) > 0, 1.0), {}, "payoffs must be numbers.*, got an array of bool"),
        ((torch.eye(2) > 0, 1.0), {}, "payoffs must be numbers.*, got a tensor of torch.bool"),
        (({"a": MATCH}, 1.0), {}, "payoffs must be numbers in the shape of an array, got {'a': "),
        ((MATCH, 1.0), {"magnets": [None, [0.5, 0.5]]}, r"magnets\[0\] must be numbers.*, got None"),
        ((MATCH, 1.0), {"magnets": [[True, False], [0.5, 0.5]]}, r"magnets\[0\] must be numbers.*, got True"),
        ((MATCH, 1.0), {"magnets": {"a": [0.5, 0.5], "b": [0.5, 0.5]}}, "magnets must be a list .* order of the axes"),
        ((MATCH, 1.0), {"start": [[[0.5, 0.5]], [[0.5, 0.5]]]}, r"start\[0\] must have the shape \(2,\)"),
        ((MATCH, 1.0), {"transitions": np.ones((2, 2))}, "transitions must sum to 1 over the next states, got 2.0"),
        (
            (MATCH, 1.0),
            {"transitions": np.ones((2, 2, 1))},
            r"transitions must have the shape \(2, 2, 2\), one probability per next state",
        ),
        ((MATCH, [1e-300, 1e300]), {}, r"temperatures\[0\] must be between 1e-150 and 1e\+150, got 1e-300"),
        ((MATCH, 1e-320), {}, "temperatures must be between 1e-150"),
        ((1e200 * MATCH, 1.0), {}, r"payoffs must be at most 1e\+150 in size, got 1e\+200"),
        ((MATCH, 1.0), {"discount": 0.5}, "discount=0.5 needs transitions"),
        ((MATCH, 1.0), {"discount": 1.0}, r"discount must be in \[0, 1\), got 1.0"),
        ((MATCH, 1.0), {"discount": None}, r"discount must be in \[0, 1\), got None. Give a number."),
        ((MATCH, 1.0), {"discount": -0.1}, r"discount must be in \[0, 1\), got -0.1"),
        ((MATCH, 1.0), {"discount": float("nan")}, r"discount must be in \[0, 1\), got nan"),
        ((MATCH, 1.0), {"transitions": np.ones((2, 2, 2))}, r"transitions must .*"),
        ((MATCH, 1.0), {"tolerance": 0.0}, "tolerance must be a finite number above 0, got 0.0"),
        ((MATCH, 1.0), {"max_steps": 0}, "max_steps must be a whole number, at least 1, got 0"),
        ((MATCH, 1.0), {"step_size": -1.0}, "step_size must be a finite number above 0, got -1.0"),
    ],
)
def test_what_does_not_fit_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        solve_hqre(*arguments, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantal_response([1.0, 0.0], -1.0), "temperature must be above 0, got -1.0"),
        (lambda: quantal_response([np.inf, 0.0], 1.0), r"values must be finite, got inf at \[0\]"),
        (lambda: quantal_response(1.0, 1.0), "values must have an axis of actions"),
        (lambda: quantal_response([1.0, 0.0], 1.0, [0.5, 0.6]), "prior must sum to 1"),
        (lambda: quantal_response([1.0, 0.0], 1.0, [1.0, 0.0, 0.0]), r"prior must have the shape \(2,\)"),
        (lambda: quantal_response([1.0, 0.0], [1.0, 2.0]), r"temperature must be one number, got the shape \(2,\)"),
        (lambda: mirror_step([0.5, 0.4], [1.0, 0.0], 1.0, 1.0), "policy must sum to 1"),
        (lambda: mirror_step([0.5, 0.5], [1.0, 0.0], 0.0, 1.0), "step_size must be a finite number above 0"),
        (lambda: mirror_step([0.5, 0.5], [1.0, 0.0], 1.0, -1.0), "temperature must be at least 0, got -1.0"),
        (lambda: mirror_step([1.0, 0.0], [1.0, 0.0], 1.0, 1.0, [0.0, 1.0]), "magnet has none of the actions"),
        (lambda: contraction([[0.5, 0.5]] * 2), "at least 3 entries"),
        (lambda: contraction([[0.5, 0.5], [1.0], [0.5, 0.5]]), r"policies\[1\] must have the shapes of policies\[0\]"),
        (lambda: contraction([[[0.5, 0.5], [1.0]], [[1.0], [0.5, 0.5]]] * 2), r"policies\[1\] must have the shapes"),
        (lambda: contraction([{"a": [1.0]}, {"b": [1.0]}, {"a": [1.0]}]), r"policies\[1\] must have the shapes"),
        (lambda: contraction([{"a": [1.0]}, [[1.0]], {"a": [1.0]}]), r"policies\[1\] must have the shapes"),
        (lambda: contraction([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), r"policies\[0\] must sum to 1"),
        (lambda: contraction([{"a": [0.5, 0.5]}, {"a": [0.5, 0.4]}] * 2), r"policies\[1\]\['a'\] must sum to 1"),
        (lambda: contraction([[0.5, 0.5], [0.5, 0.5], None]), r"policies\[2\] must be numbers.*, got None"),
        (lambda: contraction(None), "policies must be a sequence of the policies after each step, got None"),
        (lambda: contraction({"a": [0.5, 0.5]}), "policies must be a sequence"),
        (lambda: contraction([1.0, 1.0, 1.0]), r"policies\[0\] must have an axis of actions"),
        (lambda: contraction([{}, {}, {}]), r"policies\[0\] must have a policy"),
        (lambda: quantal_response(["1", "0"], 1.0), "values must be numbers.*, got '1'"),
        (lambda: quantal_response([1.0, 0.0], True), "temperature must be numbers.*, got True"),
        (lambda: quantal_response([1.0, 0.0], 1.0, np.float32([0.5, 0.501])), "prior must sum to 1"),
        (lambda: quantal_response([1.0, 0.0], 1.0, torch.tensor([0.5, 0.6]).bfloat16()), "prior must sum to 1"),
    ],
)
def test_bad_arguments_of_the_steps_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

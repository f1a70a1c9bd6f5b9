"""
Equilibria of roles that each keep close to a prior, and the mirror steps that lead there.

A quantal response equilibrium (McKelvey and Palfrey, Games and Economic Behavior 1995; in agent form, Experimental
Economics 1998) is a fixed point of `pi_i = softmax((Q_i + tau_i log rho_i) / tau_i)`: every agent answers the others'
policies with the maximiser of its mean payoff minus `tau_i KL(pi_i || rho_i)`. The temperature `tau_i` may differ
between agents and states. A uniform magnet `rho_i` makes the second term an entropy. Magnetic mirror descent (Sokota
et al., [arXiv 2206.05825](https://arxiv.org/abs/2206.05825)) is the step that goes there.

In the spirit of DICE ([arXiv 2606.08068](https://arxiv.org/abs/2606.08068)), which treats teams of language models as
such a game; neither its code nor its bounds are here. This module needs numpy and scipy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import _solving
from ._game import (
    Game,
    as_array,
    as_distribution,
    as_temperature,
    check_count,
    check_positive,
    log_of,
    log_softmax,
)


_TINY = 1e-12  # what a start gives to an action that it leaves out and the magnet does not


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """
    What [`solve_hqre`] found.

    Args:
        policies (`tuple[np.ndarray]`):
            One per agent: probabilities of shape `(actions,)`, in a Markov game `(states, actions)`.
        values (`np.ndarray` of shape `(agents,)` or `(agents, states)`):
            Mean payoff of each agent less its temperature times its own divergence from its magnet, discounted and
            summed over the steps of a Markov game. The divergences of the others are not in it.
        expected_payoffs (`np.ndarray` of shape `(agents,)` or `(agents, states)`):
            The same without the divergence: what the agents earn.
        converged (`bool`): Whether `residual` is at most the tolerance.
        num_steps (`int`):
            Mirror steps, steps of their flow, Newton steps, and corrector steps along the branch, together.
        residual (`float`): Largest difference between a probability and that of the agent's quantal response.
    """

    policies: tuple[np.ndarray, ...]
    values: np.ndarray
    expected_payoffs: np.ndarray
    converged: bool
    num_steps: int
    residual: float


def quantal_response(values, temperature, prior=None) -> np.ndarray:
    """
    `softmax((values + temperature * log prior) / temperature)` over the last axis.

    Args:
        values (`np.ndarray` of shape `(..., actions)`): Value of each action; tensors and lists are taken too.
        temperature (`float` or `np.ndarray` of shape `(...)`): Above 0, in units of the values.
        prior (`np.ndarray` of shape `(..., actions)`, *optional*):
            Probabilities, uniform by default. An action of probability 0 keeps it.

    Returns:
        `np.ndarray` of shape `(..., actions)`: probabilities, float64.

    Raises:
        `ValueError`: for values that are not finite, a temperature that is not above 0, or a prior that is not a
            distribution over the actions.

    Example:
        ```python
        >>> from trl_fork.teams import quantal_response
        >>> quantal_response([1.0, 0.0], temperature=0.5).round(3)
        array([0.881, 0.119])
        >>> quantal_response([1.0, 0.0], temperature=0.5, prior=[0.1, 0.9]).round(3)
        array([0.451, 0.549])
        ```
    """
    values = _values(values)
    temperature = as_temperature(temperature, "temperature", values.shape[:-1])
    prior = _uniform(values) if prior is None else as_distribution(prior, "prior", values.shape)
    # The largest value is taken off first: divided by a small temperature it could be infinite.
    with np.errstate(over="ignore"):
        top = np.where(prior > 0, values, -np.inf).max(-1, keepdims=True)
        below = np.where(prior > 0, values - top, 0.0) / temperature[..., None]
    return log_softmax(below + log_of(prior), prior > 0)[0]


def mirror_step(policy, values, step_size, temperature, magnet=None) -> np.ndarray:
    """
    One step of magnetic mirror descent: `log new = (log policy + eta Q + eta tau log magnet) / (1 + eta tau) - log Z`.

    Its fixed point is the quantal response to `values`. An action of probability 0 keeps it, in the policy or (with a
    temperature above 0) in the magnet.

    Args:
        policy (`np.ndarray` of shape `(..., actions)`): Probabilities; tensors and lists are taken too.
        values (`np.ndarray` of shape `(..., actions)`): Value Q of each action.
        step_size (`float`): Eta, above 0.
        temperature (`float` or `np.ndarray` of shape `(...)`):
            Tau, at least 0. With 0 the step is that of multiplicative weights, and the magnet is not read.
        magnet (`np.ndarray` of shape `(..., actions)`, *optional*): Probabilities, uniform by default.

    Returns:
        `np.ndarray` of shape `(..., actions)`: probabilities, float64.

    Raises:
        `ValueError`: for values that are not finite, a step size that is not above 0, a temperature below 0, a policy
            or magnet that is not a distribution, or a magnet that has none of the policy's actions.

    Example:
        ```python
        >>> from trl_fork.teams import mirror_step
        >>> mirror_step([0.5, 0.5], [1.0, 0.0], step_size=0.5, temperature=1.0).round(3)
        array([0.583, 0.417])
        ```
    """
    values = _values(values)
    step_size = check_positive(step_size, "step_size")
    temperature = as_temperature(temperature, "temperature", values.shape[:-1], zero_allowed=True)[..., None]
    policy = as_distribution(policy, "policy", values.shape)
    magnet = _uniform(values) if magnet is None else as_distribution(magnet, "magnet", values.shape)
    mask = (policy > 0) & ((magnet > 0) | (temperature == 0))
    if not mask.any(-1).all():
        raise ValueError("magnet has none of the actions of policy. Give it a probability above 0 for one of them.")
    return _solving.log_mirror_step(log_of(policy), values, step_size, temperature, log_of(magnet), mask)[0]


def solve_hqre(
    payoffs,
    temperatures,
    *,
    magnets=None,
    transitions=None,
    discount: float = 0.0,
    start=None,
    step_size: float | None = None,
    tolerance: float = 1e-10,
    max_steps: int = 10_000,
) -> Equilibrium:
    """
    Solve a game for a quantal response equilibrium with a temperature for each agent.

    At high temperature there is one equilibrium; at low temperature there may be several, and `start` decides. Without
    a step size the solver follows the flow of simultaneous mirror steps, the limit of small ones, from `start`; near a
    stable equilibrium it ends with Newton's method. A start that is an unstable equilibrium, or from which the flow
    ends in one, is taken at its word: the uniform magnet of a symmetric game may be one. [`local_contraction`] tells.

    Where the flow does not settle within half of the steps, as where it circles in games with very small temperatures,
    the solver follows the branch of equilibria that begins at the magnet for infinite temperature instead: what it
    finds is then an equilibrium, but not one that the start has chosen. (In a two-player zero-sum game in normal form
    there is one only. In a Markov game each value holds the agent's own divergences and not the other's, so the values
    do not add up to zero, and there may be several.) If neither gets there, the better of the two ends is returned.
    Rounding leaves a residual of about 1e-16 times the range of the payoffs over the temperature, so that temperatures
    below a millionth of the range need a larger `tolerance`.

    In a Markov game the values are those of the regularised game, with the divergences of later steps in them: each
    agent maximises `E[sum_t discount^t (r_i - tau_i(s) KL(pi_i(.|s) || rho_i(.|s)))]`. One agent alone is soft value
    iteration.

    Args:
        payoffs (`np.ndarray` of shape `(A1, ..., AN)`, or a list of N of them):
            A payoff that all agents share, or a list with the payoffs of each agent. In a Markov game the states come
            first: `(S, A1, ..., AN)`. One array is always shared: one of shape `(2, 2, 2)` is the payoff of three
            agents, and two agents with payoffs of their own are a list of two arrays.
        temperatures (`float` or `sequence`):
            Above 0, in units of the payoffs: one for all, one for each agent, or for each agent one for each state.
        magnets (`sequence` of `np.ndarray` of shape `(Ai,)` or `(S, Ai)`, *optional*):
            Prior of each agent, uniform by default. An action of probability 0 is never played.
        transitions (`np.ndarray` of shape `(S, A1, ..., AN, S)`, *optional*):
            Probabilities of the next state, which make the game a Markov game.
        discount (`float`, *optional*, defaults to `0.0`): In [0, 1), for Markov games.
        start (`sequence` of `np.ndarray` of shape `(Ai,)` or `(S, Ai)`, *optional*):
            Policies to start from, by default the magnets. A probability of 0 counts as 1e-12, but where the magnet is
            0 too.
        step_size (`float`, *optional*):
            Takes plain mirror steps of this size, and nothing else. They converge in monotone games up to
            `tau / L^2`, L the Lipschitz constant of the values.
        tolerance (`float`, *optional*, defaults to `1e-10`): Largest residual of a solution.
        max_steps (`int`, *optional*, defaults to `10000`): Limit of the steps.

    Returns:
        [`Equilibrium`]: the policies at the end. Read `converged` first.

    Raises:
        `ValueError`: for shapes that do not fit together, numbers that are not finite, temperatures that are not above
            0, magnets or transitions that are not distributions, a discount outside [0, 1), payoffs or temperatures
            above 1e150, or temperatures below 1e-150.

    Example:
        ```python
        >>> from trl_fork.teams import solve_hqre
        >>> match = [[1.0, 0.0], [0.0, 1.0]]
        >>> solve_hqre(match, 1.0).policies[0].round(3)
        array([0.5, 0.5])
        >>> solve_hqre(match, 0.55, magnets=[[0.7, 0.3], [0.7, 0.3]]).policies[0].round(3)
        array([0.913, 0.087])
        ```
    """
    game = Game(payoffs, temperatures, magnets, transitions, discount)
    tolerance, max_steps = check_positive(tolerance, "tolerance"), check_count(max_steps, "max_steps")
    logits = game.logits(game.magnets if start is None else _inside(game, start))
    if step_size is not None:
        budget = _solving.Budget(max_steps)
        size = check_positive(step_size, "step_size")
        logits, _ = _solving.mirror_steps(game, logits, size, tolerance, budget)
        used = budget.used
    else:
        budget = _solving.Budget((max_steps + 1) // 2)
        logits, found = _solving.mirror_flow(game, logits, tolerance, budget)
        used = budget.used
        if not found and max_steps > used:
            rest = _solving.Budget(max_steps - used)
            other, found = _solving.follow_branch(game, tolerance, rest)
            used += rest.used
            if found or game.residual(other) < game.residual(logits):
                logits = other
    residual = game.residual(logits)
    policies = game.policies(logits)
    values, payoff = (
        np.stack(game.evaluate(logits, regularised=regularised)[1]) + game.shifts[:, None] / (1 - game.discount)
        for regularised in (True, False)
    )
    if not game.is_markov:
        policies, values, payoff = [policy[0] for policy in policies], values[:, 0], payoff[:, 0]
    return Equilibrium(tuple(policies), values, payoff, residual <= tolerance, used, residual)


def local_contraction(
    payoffs, policies, temperatures, step_size: float, *, magnets=None, transitions=None, discount: float = 0.0
) -> float:
    """
    Spectral radius of a simultaneous mirror step of all agents, linearised at some policies.

    At an equilibrium it is the factor by which a small distance shrinks in a step, in the long run: below 1 the
    equilibrium is locally stable under steps of this size.

    Args:
        payoffs, temperatures, magnets, transitions, discount: Arguments of [`solve_hqre`].
        policies (`sequence` of `np.ndarray` of shape `(Ai,)` or `(S, Ai)`):
            The policies, such as those of a solution. As in `start` of [`solve_hqre`], a probability of 0 counts as
            1e-12, but where the magnet is 0 too.
        step_size (`float`): Eta, above 0.

    Returns:
        `float`: at least 0.

    Raises:
        `ValueError`: as [`solve_hqre`] does.
    """
    game = Game(payoffs, temperatures, magnets, transitions, discount)
    step_size = check_positive(step_size, "step_size")
    pull = _solving.pull_of(step_size, game.rates)[:, None]
    logits = game.logits(_inside(game, policies, "policies"))
    step = np.eye(game.num_logits) - pull * game.jacobian(logits)
    # Constants added to logits, and logits of actions that are never played, change no policy.
    kept = []
    for part, mask in zip(game.split(np.arange(game.num_logits)), game.masks, strict=True):
        kept += [(row[m][1:], row[m][:1]) for row, m in zip(part, mask, strict=True)]
    numbers = np.concatenate([others for others, _ in kept])
    if not len(numbers):
        return 0.0
    firsts = np.concatenate([np.repeat(first, len(others)) for others, first in kept])
    return float(abs(np.linalg.eigvals((step[numbers] - step[firsts])[:, numbers])).max())


def contraction(policies: Sequence) -> np.ndarray:
    """
    Ratios `|Delta_(k+1)| / |Delta_k|` of the changes between successive policies.

    The norm is Euclidean, over the probabilities of all agents together. Below 1 the steps become smaller; a constant
    ratio is linear convergence, and near an equilibrium it approaches [`local_contraction`]. This is our reading of a
    diagnostic that can be measured from rollouts. Where nothing changes any more the ratio is 0 / 0, which is NaN, and
    changes of the size of rounding (1e-16) or of sampling noise say nothing either.

    Args:
        policies (`sequence`):
            Policies after each step, at least three of them: an array, a list of one array per agent, or a dictionary
            of them. The last axis of each array is that of the actions.

    Returns:
        `np.ndarray` of shape `(len(policies) - 2,)`: NaN for 0 / 0, infinity where a change follows none.

    Raises:
        `ValueError`: for fewer than three policies, entries that are not distributions over the actions, or policies
            that differ in their shapes or keys.
    """
    if isinstance(policies, Mapping | str) or not np.iterable(policies):
        raise ValueError(f"policies must be a sequence of the policies after each step, got {policies!r}.")
    steps = [_named_arrays(policy, f"policies[{number}]") for number, policy in enumerate(policies)]
    if len(steps) < 3:
        raise ValueError(f"policies must have at least 3 entries, from which two changes are made, got {len(steps)}.")
    first, *later = ({f"policies[k]{place}": array.shape for place, array in step.items()} for step in steps)
    for number, shapes in enumerate(later, start=1):
        if shapes != first:
            raise ValueError(f"policies[{number}] must have the shapes of policies[0], {first}, got {shapes}.")
    rows = [np.concatenate([step[place].reshape(-1) for place in steps[0]]) for step in steps]
    changes = np.linalg.norm(np.diff(np.stack(rows), axis=0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return changes[1:] / changes[:-1]


def _named_arrays(policy, name: str) -> dict[str, np.ndarray]:
    """The distributions of one entry of [`contraction`], by what names them within it."""
    if isinstance(policy, Mapping):
        parts = {f"[{key!r}]": part for key, part in policy.items()}
    elif isinstance(policy, list | tuple) and any(np.iterable(part) for part in policy):
        parts = {f"[{number}]": part for number, part in enumerate(policy)}
    else:
        parts = {"": policy}
    arrays = {}
    for place, part in parts.items():
        array = as_array(part, name + place)
        if not array.ndim or not array.size:
            raise ValueError(f"{name}{place} must have an axis of actions, got the shape {array.shape}.")
        arrays[place] = as_distribution(part, name + place, array.shape)
    if not arrays:
        raise ValueError(f"{name} must have a policy, got {policy!r}.")
    return arrays


def _values(values) -> np.ndarray:
    values = as_array(values, "values")
    if not values.ndim or not values.shape[-1]:
        raise ValueError(f"values must have an axis of actions, got the shape {values.shape}.")
    return values


def _uniform(values: np.ndarray) -> np.ndarray:
    return np.full(values.shape, 1.0 / values.shape[-1])


def _inside(game: Game, policies, name: str = "start") -> list[np.ndarray]:
    """Policies without zeros, but where the magnet has them."""
    checked = game.distributions(policies, name)
    return [np.where(mask, np.maximum(policy, _TINY), 0.0) for policy, mask in zip(checked, game.masks, strict=True)]

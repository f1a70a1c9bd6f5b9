"""How an equilibrium is found: the flow of the mirror steps, Newton's method, and the branch from high temperature."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.integrate import LSODA

from ._game import Game, log_softmax


NEAR = 1e-3  # residual from which on Newton's method is tried, and how far it may move a policy
_GROWTH = 2.0  # of the steps along a branch
_ROUNDING = 1e-6  # a residual at which Newton's method has arrived, as near as rounding lets it
_LARGEST = np.finfo(np.float64).max


class Budget:
    """Counts steps, so that none is taken after the last."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0

    def spend(self) -> bool:
        if self.used >= self.limit:
            return False
        self.used += 1
        return True


def log_mirror_step(log_policy, values, step_size: float, temperature, log_magnet, mask):
    """
    The policy after a mirror step, and its logarithm, over the actions of the mask.

    Where a product leaves the floats the limit is taken, and a logarithm stays finite: an action whose probability is
    too small for a float can come back.
    """
    with np.errstate(over="ignore", divide="ignore"):
        top = np.where(mask, values, -np.inf).max(-1, keepdims=True)
        below = np.maximum(np.where(mask, values - top, 0.0), -_LARGEST)
        kept = 1 / (1 + step_size * temperature)
        gain = 1 / (1 / step_size + temperature)
        logits = kept * log_policy + gain * below + gain * temperature * log_magnet
    return log_softmax(np.maximum(logits, -_LARGEST), mask)


def pull_of(step_size: float, rates: np.ndarray) -> np.ndarray:
    """`eta tau / (1 + eta tau)`, the way that a mirror step goes from the policy to its response."""
    with np.errstate(over="ignore", divide="ignore"):
        return 1 / (1 + 1 / (step_size * rates))


def mirror_steps(
    game: Game, logits: np.ndarray, step_size: float, tolerance: float, budget: Budget
) -> tuple[np.ndarray, bool]:
    """Plain mirror steps of all agents at once."""
    weight = pull_of(step_size, game.rates)
    while not game.residual(logits) <= tolerance:
        if not budget.spend():
            return logits, False
        logits = (1 - weight) * logits + weight * game.response(logits)
    return logits, True


def mirror_flow(game: Game, logits: np.ndarray, tolerance: float, budget: Budget) -> tuple[np.ndarray, bool]:
    """
    The limit of small mirror steps, as an ordinary differential equation with step control.

    Where it comes near a stable equilibrium, Newton's method goes the rest of the way.
    """
    scale = game.rates / game.rates.max()
    attempt, last = NEAR, logits
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step that fails shows in the solver's status
        solver = LSODA(lambda t, y: -scale * game.gap(y), 0.0, logits, np.inf, rtol=1e-7, atol=1e-9)
        while True:
            if not np.isfinite(residual := game.residual(solver.y)):
                return last, False
            last = solver.y.copy()
            if residual <= tolerance:
                return last, True
            if residual <= attempt:
                attempt = residual / 10
                end, found = newton(game, last, tolerance, budget)
                if found and _distance(game, last, end) <= NEAR and _is_stable(game, end, scale):
                    return end, True
            if not budget.spend() or solver.status != "running":
                return last, False
            solver.step()


def _distance(game: Game, first: np.ndarray, second: np.ndarray) -> float:
    return max(abs(a - b).max() for a, b in zip(game.policies(first), game.policies(second), strict=True))


def _is_stable(game: Game, logits: np.ndarray, scale: np.ndarray) -> bool:
    """Whether the flow goes towards an equilibrium: near an unstable one it only passes."""
    return bool(np.linalg.eigvals(-scale[:, None] * game.jacobian(logits)).real.max() < 0)


def newton(game: Game, logits: np.ndarray, tolerance: float, budget: Budget) -> tuple[np.ndarray, bool]:
    """Newton's method for the logits; a step is halved until it makes the gap smaller."""
    gap = game.gap(logits)
    while not game.residual(logits) <= tolerance:
        if not budget.spend():
            return logits, False
        try:
            step = np.linalg.solve(game.jacobian(logits), gap)
        except np.linalg.LinAlgError:
            return logits, False
        for _ in range(12):
            trial = logits - step
            trial_gap = game.gap(trial)
            if abs(trial_gap).max() < abs(gap).max():
                break
            step = step / 2
        else:
            return logits, False
        logits, gap = trial, trial_gap
    return logits, True


@np.errstate(all="ignore")  # a step that leaves the floats is not taken
def follow_branch(game: Game, tolerance: float, budget: Budget) -> tuple[np.ndarray, bool]:
    """
    The equilibria of `logits = log magnet + x (response - log magnet)` from x = 0, the magnet, to x = 1, the game.

    In normal form this is the principal branch of quantal response equilibria with the temperatures divided by x
    (McKelvey and Palfrey, 1995). It may turn back on its way, so its length is what the steps are counted in. The
    last coordinate is x in units in which a step moves logits by about as much: the branch bends where the payoffs
    begin to matter, and with x itself that bend would be too sharp to follow at low temperatures.
    """
    origin = game.join(game.log_magnets)
    end_of_branch = game.sharpness
    point = np.append(origin, 0.0)
    # At x = 0 the derivatives by the logits are those of the identity.
    direction = np.append((game.response(origin) - origin) / end_of_branch, 1.0)
    direction /= np.linalg.norm(direction)
    length = 0.01
    while budget.used < budget.limit:
        guess = point + length * direction
        found = _correct(game, guess, origin, lambda trial, at=guess, by=direction: (by, by @ (trial - at)), budget)
        turned = None if found is None else _tangent(game, found, origin, direction)
        if found is None or turned is None or turned @ direction < 0.9:
            length /= 2
            if length < 1e-9:
                return point[:-1], False
            continue
        if found[-1] >= end_of_branch:
            last = (end_of_branch - point[-1]) / (found[-1] - point[-1])
            end, reached = newton(game, (point + last * (found - point))[:-1], tolerance, budget)
            if reached or length < 1e-6 or game.residual(end) < _ROUNDING:
                return end, reached
            length /= 2
            continue
        point, direction = found, turned
        length *= _GROWTH
    return point[:-1], False


def _bordered(game: Game, point: np.ndarray, origin: np.ndarray, border: np.ndarray) -> np.ndarray:
    """Derivatives of the branch's equation by logits and the last coordinate, and a last row."""
    pull = (game.response(point[:-1]) - origin) / game.sharpness
    share = point[-1] / game.sharpness
    derivative = share * game.jacobian(point[:-1]) + (1 - share) * np.eye(game.num_logits)
    return np.vstack([np.hstack([derivative, -pull[:, None]]), border])


def _tangent(game: Game, point: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
    right = np.zeros_like(point)
    right[-1] = 1.0
    try:
        tangent = np.linalg.solve(_bordered(game, point, origin, direction), right)
    except np.linalg.LinAlgError:
        return None
    return tangent / np.linalg.norm(tangent)


def _correct(game: Game, point: np.ndarray, origin: np.ndarray, border: Callable, budget: Budget) -> np.ndarray | None:
    """Newton's method back to the branch, within the plane of the border; `None` where it does not settle at once."""
    for _ in range(5):
        if not budget.spend():
            return None
        pull = game.response(point[:-1]) - origin
        row, offset = border(point)
        left = np.append(point[:-1] - origin - point[-1] / game.sharpness * pull, offset)
        try:
            step = np.linalg.solve(_bordered(game, point, origin, row), left)
        except np.linalg.LinAlgError:
            return None
        point = point - step
        if (abs(step) < 1e-8 * (1 + abs(point))).all():
            return point
    return None

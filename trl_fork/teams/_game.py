"""Games with an entropy-regularised equilibrium: their checked arrays, and the value of every action."""

from collections.abc import Sequence
from numbers import Integral, Real
from string import ascii_lowercase

import numpy as np


# Complex numbers in place of real ones pass through every function of logits here, which gives exact derivatives
# (the complex-step method): the imaginary part of f(x + i h) over h, without the rounding of a difference.
_STEP = 1e-40


def as_array(value, name: str) -> np.ndarray:
    """A float64 array of finite numbers, of a tensor, a list or an array."""
    if hasattr(value, "detach"):  # a tensor, perhaps in bfloat16 and on a GPU
        value = value.detach().double().cpu()
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be numbers in the shape of an array, got {value!r}. Give every row as many entries as the "
            "others."
        ) from error
    if not np.isfinite(array).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"{name} must be finite, got {array[place]} at {list(place)}. Leave out what could not be measured."
        )
    return array


def as_distribution(value, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Probabilities over the last axis, broadcast to `shape`; what float32 left of a sum is divided out."""
    array = as_array(value, name)
    try:
        if array.shape[-1:] != shape[-1:]:  # one number would be taken for all actions
            raise ValueError(array.shape)
        array = np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(
            f"{name} must have the shape {shape}, one probability per action, got {array.shape}."
        ) from error
    if (array < 0).any():
        raise ValueError(f"{name} must not be negative, got {array.min()}. Give probabilities, not their logarithms.")
    total = array.sum(-1, keepdims=True)
    if (abs(total - 1) > 1e-6).any():
        worst = total.flat[abs(total - 1).argmax()]
        raise ValueError(f"{name} must sum to 1 over the actions, got {worst}. Divide by the sum.")
    return array / total


def as_temperature(value, name: str, shape: tuple[int, ...], *, zero_allowed: bool = False) -> np.ndarray:
    array = as_array(value, name)
    if (array < 0).any() or (not zero_allowed and (array == 0).any()):
        raise ValueError(
            f"{name} must be {'at least' if zero_allowed else 'above'} 0, got {array.min()}."
            + ("" if zero_allowed else " Without a temperature there is no quantal response: take a small one.")
        )
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(f"{name} must be one number or have the shape {shape}, got {array.shape}.") from error


def is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(float(value)))


def check_positive(value, name: str) -> float:
    if not is_number(value) or not value > 0:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")
    return float(value)


def check_count(value, name: str) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}.")
    return int(value)


def log_of(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms, 0 where the probability is 0: such an action is left out by a mask."""
    return np.log(np.where(probabilities > 0, probabilities, 1.0))


def log_softmax(logits: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities over the actions of the mask, and their logarithms (0 outside)."""
    top = np.where(mask, logits.real, -np.inf).max(-1, keepdims=True)
    shifted = np.where(mask, logits - top, 0.0)
    weights = np.where(mask, np.exp(shifted), 0.0)
    total = weights.sum(-1, keepdims=True)
    return weights / total, np.where(mask, shifted - np.log(total), 0.0)


class Game:
    """
    A Markov game of N agents, S states; a game in normal form has one state and no future.

    Policies are one vector of logits: agent after agent, state after state, action after action. The quantal response
    to them is another such vector, and an equilibrium a fixed point.
    """

    def __init__(self, payoffs, temperatures, magnets, transitions, discount):
        if not is_number(discount) or not 0 <= discount < 1:
            raise ValueError(f"discount must be in [0, 1), got {discount!r}. At 1 a sum of returns has no end.")
        if transitions is None and discount:
            raise ValueError(
                f"discount={discount} needs transitions: a game in normal form is played once. Give transitions, or "
                "leave out discount."
            )
        self.is_markov, self.discount = transitions is not None, float(discount)
        arrays = _payoff_arrays(payoffs, self.is_markov)
        self.num_agents = len(arrays)
        self.num_states, self.sizes = arrays[0].shape[0], arrays[0].shape[1:]
        # A constant changes no response, and small differences would drown in a large one.
        self.shifts = np.array([(array.max() + array.min()) / 2 for array in arrays])
        self.payoffs = [array - shift for array, shift in zip(arrays, self.shifts, strict=True)]
        self.transitions = None
        if self.is_markov:
            self.transitions = as_distribution(transitions, "transitions", (*arrays[0].shape, self.num_states))
        self.temperatures = self._temperatures(temperatures)
        if magnets is None:
            self.magnets = [np.full((self.num_states, size), 1.0 / size) for size in self.sizes]
        else:
            self.magnets = self.distributions(magnets, "magnets")
        self.masks = [magnet > 0 for magnet in self.magnets]
        self.log_magnets = [log_of(magnet) for magnet in self.magnets]
        ends = np.cumsum([self.num_states * size for size in self.sizes])
        self._cuts, self.num_logits = ends[:-1], int(ends[-1])
        self.rates = self.join(
            [np.repeat(t[:, None], a, 1) for t, a in zip(self.temperatures, self.sizes, strict=True)]
        )

    def _temperatures(self, temperatures) -> list[np.ndarray]:
        if not isinstance(temperatures, list | tuple) and np.ndim(temperatures) == 0:
            temperatures = [temperatures] * self.num_agents
        if len(temperatures) != self.num_agents:
            raise ValueError(
                f"temperatures must be one number, or one entry for each of the {self.num_agents} agents, got "
                f"{len(temperatures)} entries."
            )
        return [as_temperature(t, f"temperatures[{i}]", (self.num_states,)) for i, t in enumerate(temperatures)]

    def distributions(self, policies, name: str) -> list[np.ndarray]:
        """One array `(states, actions)` per agent, of arrays that may lack the states."""
        if not np.iterable(policies):
            raise ValueError(f"{name} must have one array for each of the {self.num_agents} agents, got {policies!r}.")
        policies = list(policies)
        if len(policies) != self.num_agents:
            raise ValueError(
                f"{name} must have one array for each of the {self.num_agents} agents, got {len(policies)}."
            )
        rows = zip(policies, self.sizes, strict=True)
        return [as_distribution(p, f"{name}[{i}]", (self.num_states, size)) for i, (p, size) in enumerate(rows)]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([part.reshape(-1) for part in parts])

    def split(self, vector: np.ndarray) -> list[np.ndarray]:
        parts = np.split(vector, self._cuts)
        return [part.reshape(self.num_states, size) for part, size in zip(parts, self.sizes, strict=True)]

    def policies(self, logits: np.ndarray) -> list[np.ndarray]:
        return [log_softmax(part, mask)[0] for part, mask in zip(self.split(logits), self.masks, strict=True)]

    def logits(self, policies: Sequence[np.ndarray]) -> np.ndarray:
        return self.join([log_of(policy) for policy in policies])

    def evaluate(self, logits: np.ndarray, *, regularised: bool = True) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Values `(states, actions)` of the actions, and `(states,)` of the states, of each agent."""
        pairs = [log_softmax(part, mask) for part, mask in zip(self.split(logits), self.masks, strict=True)]
        policies = [pair[0] for pair in pairs]
        action_values, state_values = [], []
        moves = None if self.transitions is None else _mean_over(self.transitions, policies, keep=None)
        for agent, (policy, log_policy) in enumerate(pairs):
            values = _mean_over(self.payoffs[agent], policies, keep=agent)
            here = (policy * values).sum(-1)
            if regularised:
                here = here - self.temperatures[agent] * (policy * (log_policy - self.log_magnets[agent])).sum(-1)
            if moves is not None:
                here = np.linalg.solve(np.eye(self.num_states) - self.discount * moves, here)
                future = _mean_over(self.transitions, policies, keep=agent) @ here
                values = values + self.discount * future
            action_values.append(values)
            state_values.append(here)
        return action_values, state_values

    def response(self, logits: np.ndarray) -> np.ndarray:
        """Logits of the quantal response of every agent."""
        values, _ = self.evaluate(logits)
        rows = zip(values, self.temperatures, self.log_magnets, strict=True)
        return self.join([value / tau[:, None] + log_magnet for value, tau, log_magnet in rows])

    def gap(self, logits: np.ndarray) -> np.ndarray:
        """0 at an equilibrium."""
        return logits - self.response(logits)

    def residual(self, logits: np.ndarray) -> float:
        """Largest difference between a probability and that of the quantal response."""
        pairs = zip(self.policies(logits), self.policies(self.response(logits)), strict=True)
        return float(max(abs(now - answer).max() for now, answer in pairs))

    def jacobian(self, logits: np.ndarray) -> np.ndarray:
        """Derivatives of [`gap`]: exact, one column per logit."""
        columns = []
        for number in range(self.num_logits):
            moved = logits.astype(np.complex128)
            moved[number] += _STEP * 1j
            columns.append(self.gap(moved).imag / _STEP)
        return np.stack(columns, axis=1)


def _mean_over(array: np.ndarray, policies: Sequence[np.ndarray], keep: int | None) -> np.ndarray:
    """The mean over all actions but those of one agent; `array` is `(states, A1, ..., AN)`, or with one axis more."""
    num_agents = len(policies)
    array = array.astype(policies[0].dtype)
    for agent in reversed(range(num_agents)):
        if agent == keep:
            continue
        axis = agent + 1
        letters = ascii_lowercase[: array.ndim]
        result = letters.replace(letters[axis], "")
        array = np.einsum(f"{letters},{letters[0]}{letters[axis]}->{result}", array, policies[agent])
    return array


def _payoff_arrays(payoffs, is_markov: bool) -> list[np.ndarray]:
    """One array `(states, A1, ..., AN)` per agent."""
    extra = int(is_markov)
    if _is_one_per_agent(payoffs, extra):
        arrays = [as_array(payoff, f"payoffs[{number}]") for number, payoff in enumerate(payoffs)]
        for number, array in enumerate(arrays):
            if array.shape != arrays[0].shape:
                raise ValueError(
                    f"payoffs[{number}] must have the shape of payoffs[0], {arrays[0].shape}, got {array.shape}."
                )
            if array.ndim != len(arrays) + extra:
                raise ValueError(
                    f"payoffs[{number}] must have an axis for each of the {len(arrays)} agents"
                    f"{' after that of the states' if is_markov else ''}, got the shape {array.shape}. A payoff that "
                    "all agents share is one array, not a list of arrays."
                )
    else:
        shared = as_array(payoffs, "payoffs")
        if shared.ndim <= extra:
            raise ValueError(
                f"payoffs must have an axis for each agent{' after that of the states' if is_markov else ''}, got the "
                f"shape {shared.shape}."
            )
        arrays = [shared] * (shared.ndim - extra)
    if 0 in arrays[0].shape:
        raise ValueError(f"payoffs must have an action for each agent, got the shape {arrays[0].shape}.")
    return arrays if is_markov else [array[None] for array in arrays]


def _is_one_per_agent(payoffs, extra: int) -> bool:
    """A list of arrays is one per agent; a list of lists is, where its axes say so."""
    if not isinstance(payoffs, list | tuple) or not payoffs:
        return False
    if all(hasattr(payoff, "shape") and len(payoff.shape) for payoff in payoffs):
        return True
    try:
        return all(np.ndim(payoff) == len(payoffs) + extra for payoff in payoffs)
    except ValueError:  # rows of several lengths, which `as_array` names
        return False

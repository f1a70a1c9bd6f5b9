"""Games with an entropy-regularised equilibrium: their checked arrays, and the value of every action."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from string import ascii_lowercase

import numpy as np


# Complex numbers in place of real ones pass through every function of logits here, which gives exact derivatives
# (the complex-step method): the imaginary part of f(x + i h) over h, without the rounding of a difference.
_STEP = 1e-40
_EXTREME = 1e150  # of payoffs and temperatures: beyond, their quotients are no floats any more


def as_array(value, name: str) -> np.ndarray:
    """A float64 array of finite numbers, of a tensor, a list or an array."""
    return _array_and_spacing(value, name)[0]


def _array_and_spacing(value, name: str) -> tuple[np.ndarray, float]:
    """With the array comes the distance from 1 to the next number in the coarsest type of the input."""
    try:
        plain, spacing = _plain(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be numbers in the shape of an array, got {error}. Texts, booleans, None and dictionaries "
            "are not taken for numbers: convert them."
        ) from error
    try:
        array = np.asarray(plain, dtype=np.float64)
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
    return array, spacing


def _plain(value):
    """Lists, arrays and numbers only; a `TypeError` with what is no number."""
    if isinstance(value, float):
        return value, 0.0
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        pairs = [_plain(item) for item in value]
        return [plain for plain, _ in pairs], max((spacing for _, spacing in pairs), default=0.0)
    if hasattr(value, "detach"):  # a tensor, perhaps in bfloat16 and on a GPU
        import torch

        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"a tensor of {value.dtype}")
        spacing = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        return value.detach().cpu().double().numpy(), spacing
    array = np.asarray(value)
    if array.dtype == object and array.ndim:
        return _plain(array.tolist())
    if array.dtype.kind in "iuf":
        return array, np.finfo(array.dtype).eps if array.dtype.kind == "f" else 0.0
    if is_number(value):  # such as a fraction
        return float(value), 0.0
    raise TypeError(f"an array of {array.dtype}" if isinstance(value, np.ndarray) else repr(value))


def as_distribution(value, name: str, shape: tuple[int, ...], over: str = "action") -> np.ndarray:
    """
    Probabilities over the last axis, broadcast to `shape`.

    What rounding left of a sum is divided out. It may be 1e-6, and more in a type as coarse as bfloat16.
    """
    array, spacing = _array_and_spacing(value, name)
    try:
        if array.shape[-1:] != shape[-1:]:  # one number would be taken for all actions
            raise ValueError(array.shape)
        array = np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(
            f"{name} must have the shape {shape}, one probability per {over}, got {array.shape}."
        ) from error
    if (array < 0).any():
        raise ValueError(f"{name} must not be negative, got {array.min()}. Give probabilities, not their logarithms.")
    with np.errstate(over="ignore"):
        total = array.sum(-1, keepdims=True)
    if (abs(total - 1) > max(1e-6, spacing)).any():
        worst = total.flat[abs(total - 1).argmax()]
        raise ValueError(f"{name} must sum to 1 over the {over}s, got {worst}. Divide by the sum.")
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
        wanted = f"one number or have the shape {shape}" if shape else "one number"
        raise ValueError(f"{name} must be {wanted}, got the shape {array.shape}.") from error


def is_number(value) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def check_positive(value, name: str) -> float:
    if not is_number(value) or not float(value) > 0:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")
    return float(value)


def check_count(value, name: str, least: int = 1) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}.")
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
            reason = "At 1 a sum of returns has no end." if is_number(discount) else "Give a number."
            raise ValueError(f"discount must be in [0, 1), got {discount!r}. {reason}")
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
        self.shifts = np.array([array.max() / 2 + array.min() / 2 for array in arrays])
        self.payoffs = [array - shift for array, shift in zip(arrays, self.shifts, strict=True)]
        self.transitions = None
        if self.is_markov:
            shape = (*arrays[0].shape, self.num_states)
            self.transitions = as_distribution(transitions, "transitions", shape, "next state")
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

    @property
    def sharpness(self) -> float:
        """A bound of how far the payoffs may move a logit; 1 where they move none."""
        pairs = zip(self.payoffs, self.temperatures, strict=True)
        return max(abs(payoff).max() / tau.min() for payoff, tau in pairs) / (1 - self.discount) or 1.0

    def _temperatures(self, temperatures) -> list[np.ndarray]:
        shape = (self.num_states,) if self.is_markov else ()
        if isinstance(temperatures, str) or not np.iterable(temperatures):
            named = [("temperatures", temperatures)] * self.num_agents
        else:
            named = [(f"temperatures[{i}]", t) for i, t in enumerate(self._per_agent(temperatures, "temperatures"))]
        arrays = [np.broadcast_to(as_temperature(t, name, shape), (self.num_states,)) for name, t in named]
        for (name, _), array in zip(named, arrays, strict=True):
            worst = array.max() if array.max() > _EXTREME else array.min()
            if not 1 / _EXTREME <= worst <= _EXTREME:
                raise ValueError(
                    f"{name} must be between {1 / _EXTREME:g} and {_EXTREME:g}, got {worst:g}. Give payoffs and "
                    "temperatures in other units."
                )
        return arrays

    def _per_agent(self, given, name: str) -> list:
        wanted = f"a list with an entry for each of the {self.num_agents} agents"
        if name == "temperatures":
            wanted = "one number, or " + wanted
        if isinstance(given, Mapping | str) or not np.iterable(given):
            raise ValueError(f"{name} must be {wanted}, in the order of the axes of the payoffs, got {given!r}.")
        given = list(given)
        if len(given) != self.num_agents:
            raise ValueError(f"{name} must be {wanted}, got {len(given)} entries.")
        return given

    def distributions(self, policies, name: str) -> list[np.ndarray]:
        """One array `(states, actions)` per agent, of arrays that may lack the states."""
        states = (self.num_states,) if self.is_markov else ()
        rows = zip(self._per_agent(policies, name), self.sizes, strict=True)
        arrays = [as_distribution(p, f"{name}[{i}]", (*states, size)) for i, (p, size) in enumerate(rows)]
        return [array.reshape(self.num_states, -1) for array in arrays]

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
        transitions, system = self.transitions, None
        if transitions is not None:
            moves = _mean_over(transitions, policies, keep=None)
            system = np.eye(self.num_states) - self.discount * moves
        for agent, (policy, log_policy) in enumerate(pairs):
            values = _mean_over(self.payoffs[agent], policies, keep=agent)
            here = (policy * values).sum(-1)
            if regularised:
                here = here - self.temperatures[agent] * (policy * (log_policy - self.log_magnets[agent])).sum(-1)
            if transitions is not None and system is not None:
                here = np.linalg.solve(system, here)
                future = _mean_over(transitions, policies, keep=agent) @ here
                values = values + self.discount * future
            action_values.append(values)
            state_values.append(here)
        return action_values, state_values

    def response(self, logits: np.ndarray) -> np.ndarray:
        """
        Logits of the quantal response of every agent.

        The state's value is taken off, which changes no policy: at a low temperature the logits would be so large
        that their rounding moved the policies.
        """
        rows = zip(*self.evaluate(logits), self.temperatures, self.log_magnets, strict=True)
        return self.join([(q - v[:, None]) / tau[:, None] + log_magnet for q, v, tau, log_magnet in rows])

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
    if (largest := max(abs(array).max() for array in arrays)) > _EXTREME:
        raise ValueError(f"payoffs must be at most {_EXTREME:g} in size, got {largest:g}. Give them in other units.")
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

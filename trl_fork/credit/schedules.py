"""
Numbers that change over a training run.

A scheduled parameter of a rule is written `{linear|sigmoid|power: [start, end, horizon]}`. The shapes are
those of Temporal Scheduling (arXiv 2605.25381) and its code. Here `power` starts at `start` like the others; there it
squares the whole difference and starts elsewhere.
"""

from dataclasses import dataclass
from math import exp
from typing import Any


def _sigmoid(q: float) -> float:
    def curve(x: float) -> float:
        return 1 / (1 + exp(8 * (x - 0.5)))

    return (curve(q) - curve(1)) / (curve(0) - curve(1))


# Part of the distance from start to end that is left after a share q of the horizon, from 1 to 0.
SHAPES = {"linear": lambda q: 1 - q, "sigmoid": _sigmoid, "power": lambda q: (1 - q) ** 2}


@dataclass(frozen=True)
class Constant:
    """A number that does not change."""

    value: float
    is_constant = True

    def __call__(self, progress: float) -> float:
        return self.value

    @property
    def ends(self) -> tuple[float, float]:
        """The values at the start and at the end."""
        return self.value, self.value

    def describe(self) -> float:
        """The number, as a configuration writes it."""
        return self.value


@dataclass(frozen=True)
class Schedule:
    """
    `end + (start - end) * g(q)` with `q = clip(progress / horizon, 0, 1)`, rounded to 6 decimals.

    It is rounded because the last bit of `exp` differs between machines, and a fraction is read as its decimal.

    Args:
        shape (`str`): `"linear"`: `g = 1 - q`. `"sigmoid"`: a logistic curve of slope 8, scaled to run from 1 to 0.
            `"power"`: `g = (1 - q)**2`.
        start (`float`): Value at the first step.
        end (`float`): Value from `horizon` on.
        horizon (`float`): Share of the training after which the value stays at `end`, in (0, 1].
    """

    shape: str
    start: float
    end: float
    horizon: float

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"shape of a schedule must be one of {list(SHAPES)}, got {self.shape!r}.")
        if not _is_number(self.horizon) or not 0 < self.horizon <= 1:
            raise ValueError(
                f"horizon of a schedule must be in (0, 1], got {self.horizon!r}: it is the share of the training "
                "after which the value stays at its end. Pass 0.8 to reach it after 80 % of the steps."
            )

    def __call__(self, progress: float) -> float:
        q = min(max(progress / self.horizon, 0.0), 1.0)
        return round(self.end + (self.start - self.end) * SHAPES[self.shape](q), 6)

    @property
    def is_constant(self) -> bool:
        """Whether the progress of the training, and therefore `max_steps`, does not matter."""
        return self.start == self.end

    @property
    def ends(self) -> tuple[float, float]:
        """The values at the start and at the end."""
        return self(0.0), self(1.0)

    def describe(self) -> dict[str, list[float]]:
        """The schedule as a configuration writes it."""
        return {self.shape: [self.start, self.end, self.horizon]}


def as_schedule(value: Any, *, name: str, low: float, high: float, low_included: bool = False) -> Constant | Schedule:
    """
    The schedule that a configuration writes as a number or as `{shape: [start, end, horizon]}`.

    Args:
        value (`float`, `dict`, [`Constant`] or [`Schedule`]): Value of the configuration.
        name (`str`): Name of the parameter, for messages.
        low, high (`float`): Range of the number, and of the values at the start and at the end of a schedule.
        low_included (`bool`, *optional*, defaults to `False`): Whether `low` itself is allowed. `high` is.

    Raises:
        `ValueError`: if it is neither, or out of range.
    """
    if isinstance(value, dict):
        value = _schedule_of(value, name)
    elif not isinstance(value, (Constant, Schedule)):
        if not _is_number(value):
            hint = " (to YAML, a number such as 1e-2 without a dot is a text: write 0.01)" * isinstance(value, str)
            raise ValueError(
                f"{name} must be a number or a schedule such as {{'linear': [0.01, 1.0, 0.8]}}, got {value!r}{hint}."
            )
        value = Constant(value)
    for number in value.ends:
        if not (low < number or (low_included and low == number)) or not number <= high:
            interval = f"{'[' if low_included else '('}{low:g}, {high:g}]"
            where = "" if isinstance(value, Constant) else f" in {value.describe()}"
            raise ValueError(f"{name} must be in {interval}, got {number!r}{where}: choose a value of that range.")
    return value


def strength_in_words(strength: Constant | Schedule) -> str:
    """What a strength other than 1 adds to the words for a rule."""
    first, last = strength.ends
    if strength.is_constant:
        return "" if first == 1 else f", at strength {first:g}"
    return f", at a strength {'rising' if first < last else 'falling'} from {first:g} to {last:g}"


def _schedule_of(spec: dict, name: str) -> Schedule:
    shape, numbers = next(iter(spec.items())) if len(spec) == 1 else (None, None)
    if shape not in SHAPES or not isinstance(numbers, (list, tuple)) or len(numbers) != 3:
        raise ValueError(
            f"{name}: a schedule is written {{shape: [start, end, horizon]}} with one shape of {list(SHAPES)}, got "
            f"{spec!r}. For example {{'linear': [0.01, 1.0, 0.8]}} rises to 1.0 over the first 80 % of the training."
        )
    if not all(map(_is_number, numbers)):
        raise ValueError(f"{name}: start, end and horizon of a schedule must be numbers, got {spec!r}.")
    try:
        return Schedule(shape, *numbers)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

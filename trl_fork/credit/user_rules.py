"""Functions and objects of a user as rules, and the checks on them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from ..ranks import Ranks
from .pools import Pool, check_pool_name
from .rules import MASSES, Rule
from .schedules import Constant, Schedule
from .signals import SIGNALS, Signals


# Signals of a user's function without an attribute `needs`: everything that one scoring pass gives.
DEFAULT_NEEDS = frozenset({"entropies", "log_probs", "completion_ids"})


@dataclass(frozen=True)
class UserRule:
    """
    A rule made of a function or object of a user. Its weights are checked on all ranks.

    Args:
        function (`Callable`): `function(signals)` or `function(signals, pool)`, the weights of shape `(batch, seq)`.
            Its attributes `needs`, `sparse`, `mass`, `counted` and `pool` are those of [`Rule`]; the defaults are
            safe for any rule that reads no more than `DEFAULT_NEEDS`. A rule that reads the progress of
            the training has an attribute `scheduled = True`.
        name (`str`): Its name in messages and when settings are compared.
    """

    function: Callable
    name: str

    trusted = False

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(f"{self.name} must be a function of Signals, got {type(self.function).__name__}.")
        _takes_pool(self.function, self.name)
        unknown = sorted(self.needs - set(SIGNALS))
        if unknown:
            raise ValueError(f"{self.name}.needs names {unknown}, which are no signals. There are {list(SIGNALS)}.")
        if self.mass not in MASSES:
            raise ValueError(f"{self.name}.mass must be one of {list(MASSES)}, got {self.mass!r}.")
        if self.pool is not None:
            check_pool_name(self.pool)

    @property
    def needs(self) -> frozenset[str]:
        needs = getattr(self.function, "needs", DEFAULT_NEEDS)
        return frozenset({needs} if isinstance(needs, str) else needs)

    @property
    def sparse(self) -> bool:
        return bool(getattr(self.function, "sparse", True))

    @property
    def mass(self) -> str:
        return getattr(self.function, "mass", "summed")

    @property
    def counted(self) -> bool:
        return bool(getattr(self.function, "counted", True))

    @property
    def pool(self) -> str | None:
        return getattr(self.function, "pool", None)

    @property
    def in_words(self) -> str:
        return f"the tokens that {self.name} gives weight to"

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        return self.function(signals, pool) if _takes_pool(self.function, self.name) else self.function(signals)

    def forking_set(self, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        function = getattr(self.function, "forking_set", None)
        return None if function is None else function(weights, mask)


def as_rule(rule: Any) -> Rule:
    """A rule of this package as it is; any other function or object as a [`UserRule`]."""
    if isinstance(rule, UserRule) or getattr(rule, "trusted", False):
        return rule
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return UserRule(rule, f"{named.__module__}.{named.__qualname__}")


def parameters_of(rule: Rule) -> dict[str, Any]:
    """The parameters of a rule as a configuration writes them, in order; a user's rule has those of its dataclass."""
    inner = rule.function if isinstance(rule, UserRule) else rule
    if not is_dataclass(inner):
        return {}
    values = {field.name: getattr(inner, field.name) for field in fields(inner)}
    return {
        name: value.describe() if isinstance(value, (Constant, Schedule)) else value for name, value in values.items()
    }


def is_scheduled(rule: Rule) -> bool:
    """Whether a parameter changes over the training, or the rule says that it reads the progress."""
    inner = rule.function if isinstance(rule, UserRule) else rule
    values = getattr(inner, "__dict__", {}).values()
    return bool(getattr(inner, "scheduled", False)) or any(
        isinstance(value, Schedule) and not value.is_constant for value in values
    )


def checked_weights(rule: Rule, signals: Signals, pool: Pool, ranks: Ranks) -> torch.Tensor:
    """
    Weights of a user's rule, 0 outside of the mask.

    Raises:
        `ValueError`: on every rank, if on any of them the rule fails, or a weight is negative or not finite.
    """
    mask = signals.mask.bool()
    error, weights = None, torch.zeros(mask.shape, device=mask.device)
    try:
        with torch.no_grad():
            result = rule(signals, pool)
        if not isinstance(result, torch.Tensor) or result.shape != mask.shape:
            shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise ValueError(
                f"it must return a tensor of the shape of signals.mask, {tuple(mask.shape)}, got {shape}."
            )
        weights = result.to(device=mask.device, dtype=torch.float32).masked_fill(~mask, 0.0)
    except Exception as failure:  # the error is sent to the other ranks before it is raised, or they would hang
        error = failure
    failed = torch.tensor(int(error is not None), device=mask.device)
    counts = torch.stack([failed, (weights < 0).sum(), (~weights.isfinite()).sum(), mask.sum()])
    num_failed, num_negative, num_infinite, num_tokens = ranks.sum(counts).tolist()
    if error is not None:
        raise ValueError(f"token_credit: rule {rule.name} failed: {error}") from error
    if num_failed:
        raise ValueError(f"token_credit: rule {rule.name} failed on {num_failed} other processes, see their errors.")
    if num_negative or num_infinite:
        raise ValueError(
            f"token_credit: rule {rule.name} gives {num_negative} negative weights and {num_infinite} that are not "
            f"finite to {num_tokens} tokens. A weight multiplies the advantage and must be at least 0: a negative one "
            "would train against the reward, and clip the wrong side. Clamp the weights at 0."
        )
    return weights


def _takes_pool(function: Callable, name: str) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    for arguments in ((None,), (None, None)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        # `function(signals, pool=None)` is given the pool, too.
        return len(arguments) == 2 or list(signature.parameters)[1:2] == ["pool"]
    raise ValueError(f"{name}{signature} must take (signals) or (signals, pool).")

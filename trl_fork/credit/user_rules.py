"""Functions and objects of a user as rules, and the checks on them."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import torch

from .._errors import StatedError
from .._nearest import did_you_mean
from ..ranks import Ranks
from .pools import Pool, check_pool_name
from .rules import MASSES, Rule
from .schedules import Constant, Schedule
from .signals import SIGNALS, Signals


# Fields of the signals that no pass has to be made for: a rule may name them in its needs, or not.
_ALWAYS_THERE = frozenset({"mask", "advantages", "groups", "progress", "places", "tokenizer", "valid"})


# Signals of a user's function without an attribute `needs`: everything that one scoring pass gives.
DEFAULT_NEEDS = frozenset({"entropies", "log_probs", "completion_ids"})


class CreditRuleError(StatedError):
    """A user's rule has failed, or has given weights that cannot be trained with."""


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
        parameters (`dict[str, Any]`, *optional*): What it was built with, where a configuration names it.
    """

    function: Callable
    name: str
    parameters: dict[str, Any] = field(default_factory=dict, compare=False)

    trusted = False
    selects = False  # nothing is known of its weights

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(f"{self.name} must be a function of Signals, got {type(self.function).__name__}.")
        _takes_pool(self.function, self.name)
        unknown = sorted(self.needs - set(SIGNALS))
        if unknown:
            near = [close for name in unknown for close in get_close_matches(name, SIGNALS, 1)]
            raise ValueError(
                f"token_credit: {self.name}.needs names {unknown}, which are no signals."
                f"{f' Did you mean {near[0]!r}?' if near else ''} There are {list(SIGNALS)}."
            )
        if self.mass not in MASSES:
            raise ValueError(f"token_credit: {self.name}.mass must be one of {list(MASSES)}, got {self.mass!r}.")
        if self.pool is not None:
            check_pool_name(self.pool)

    @property
    def needs(self) -> frozenset[str]:
        needs = getattr(self.function, "needs", DEFAULT_NEEDS)
        return frozenset({needs} if isinstance(needs, str) else needs) - _ALWAYS_THERE

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
    """
    The parameters of a rule as a configuration writes them; those that JSON cannot hold by the name of their type.

    A user's rule has those that it was built with, and the fields of a dataclass.
    """
    inner = rule.function if isinstance(rule, UserRule) else rule
    values = {field.name: getattr(inner, field.name) for field in fields(inner)} if is_dataclass(inner) else {}
    if isinstance(rule, UserRule):
        values |= rule.parameters
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (Constant, Schedule)):
        return value.describe()
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return value


def schedules_of(rule: Rule) -> dict[str, Schedule]:
    """The parameters of a rule that change over the training."""
    inner = rule.function if isinstance(rule, UserRule) else rule
    values = getattr(inner, "__dict__", {}).items()
    return {name: value for name, value in values if isinstance(value, Schedule) and not value.is_constant}


def is_scheduled(rule: Rule) -> bool:
    """Whether a parameter changes over the training, or the rule says that it reads the progress."""
    inner = rule.function if isinstance(rule, UserRule) else rule
    return bool(getattr(inner, "scheduled", False) or schedules_of(rule))


class _AnotherRankHasFailedError(Exception):
    """Ends a rule on this rank, where it would wait for one on which it has failed."""


class _Agreement:
    """Every rank says whether its rule has failed, before each collective of the rule and at its end."""

    def __init__(self, ranks: Ranks, device: torch.device):
        self.ranks, self.device = ranks, device

    def any_has_failed(self, here: bool = False) -> bool:
        return bool(self.ranks.sum(torch.tensor(int(here), device=self.device)))


class _AgreedPool:
    """A pool whose methods a user's rule calls: none begins while the rule has failed on another rank."""

    def __init__(self, pool: Pool, agreement: _Agreement):
        self._pool, self._agreement = pool, agreement

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._pool, name)
        if not inspect.ismethod(value):
            return value

        def method(*arguments, **keywords):
            if self._agreement.any_has_failed():
                raise _AnotherRankHasFailedError
            return value(*arguments, **keywords)

        return method


def checked_weights(rule: Rule, signals: Signals, pool: Pool, ranks: Ranks) -> torch.Tensor:
    """
    Weights of a user's rule, 0 outside of the mask.

    Raises:
        [`CreditRuleError`]: on every rank, if on any of them the rule fails, or a weight is negative or not finite.
    """
    mask = signals.mask.bool()
    agreement = _Agreement(ranks, mask.device)
    error, weights = None, torch.zeros(mask.shape, device=mask.device)
    try:
        with torch.no_grad():
            agreed: Any = _AgreedPool(pool, agreement)
            result = rule(signals.only(rule.needs), agreed)
        if not isinstance(result, torch.Tensor) or result.shape != mask.shape:
            shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise ValueError(f"it must return a tensor of the shape of signals.mask, {tuple(mask.shape)}, got {shape}")
        weights = result.to(device=mask.device, dtype=torch.float32).masked_fill(~mask, 0.0)
    except _AnotherRankHasFailedError:
        raise CreditRuleError(f"token_credit: rule {rule.name} failed on another process, see its error.") from None
    except Exception as failure:  # the other ranks are told before it is raised
        error = failure
    failed_elsewhere = agreement.any_has_failed(error is not None)
    if error is not None:
        hidden = sorted(set(SIGNALS) - rule.needs)
        raise CreditRuleError(
            f"token_credit: rule {rule.name} failed ({type(error).__name__}: {error}{_signal_meant(error)}). It was "
            f"called with {len(mask)} rows; {', '.join(hidden)} were None, as its attribute needs does not name them."
        ) from error
    if failed_elsewhere:
        raise CreditRuleError(f"token_credit: rule {rule.name} failed on another process, see its error.")
    counts = torch.stack([(weights < 0).sum(), (~weights.isfinite()).sum(), mask.sum()])
    num_negative, num_infinite, num_tokens = ranks.sum(counts).tolist()
    if num_negative or num_infinite:
        negative = "A negative one would train against the reward and clip the wrong side: clamp the weights at 0."
        remedies = {negative: num_negative, "Look for a division by 0 or a logarithm of 0 in the rule.": num_infinite}
        raise CreditRuleError(
            f"token_credit: rule {rule.name} gives {num_negative} negative weights and {num_infinite} that are not "
            f"finite to {num_tokens} tokens. A weight multiplies the advantage and must be a number of at least 0. "
            + " ".join(remedy for remedy, count in remedies.items() if count)
        )
    return weights


def _signal_meant(error: Exception) -> str:
    """The end of a sentence about an attribute that signals, or their pool, do not have."""
    if not isinstance(error, AttributeError) or not isinstance(error.obj, (Signals, _AgreedPool, Pool)):
        return ""
    known = {name for name in dir(error.obj) if not name.startswith("_")}
    known |= {field.name for field in fields(Signals)} if isinstance(error.obj, Signals) else set()
    return did_you_mean(error.name, sorted(known))


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

"""Chains: each rule weighs the tokens that the rules before it have left."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ..ranks import Ranks
from .pools import POOLS, Pool, is_at_loss_time, pool_of
from .rules import Rule
from .schedules import Schedule
from .signals import Signals
from .user_rules import as_rule, checked_weights, is_scheduled, parameters_of, schedules_of


class Credit(NamedTuple):
    """
    Weights of a chain for the tokens of one process.

    Args:
        weights (`torch.FloatTensor` of shape `(batch, seq)`): At least 0; 0 at invalid tokens. Not normalised.
        mass (`torch.FloatTensor` of shape `(batch, seq)`): Weights whose sum divides the loss: those of the rules that
            are counted.
    """

    weights: torch.Tensor
    mass: torch.Tensor


@dataclass(frozen=True)
class Chain:
    """
    Rules in the order in which they apply. The mask of each is the tokens that those before it have left nonzero, and
    the weights multiply: a fraction after a span is a fraction of the span.

    Args:
        rules (`tuple`): Rules of this package, or a user's functions and objects, see [`UserRule`]. Without any
            rule every valid token has weight 1.
    """

    rules: tuple[Rule, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "rules", tuple(map(as_rule, self.rules)))

    def apply(self, signals: Signals, pool: Pool, ranks: Ranks) -> Credit:
        """
        Compute the weights of this process's rows. All ranks must call it together.

        Args:
            signals ([`Signals`]): The signals that the chain needs; `mask` is nonzero at valid tokens.
            pool ([`Pool`]): The pool of the rules that name none of their own.
            ranks ([`~ranks.Ranks`]): The processes that take part.

        Raises:
            `ValueError`: if a signal is missing, or a user's rule gives a negative weight.
            [`NaNSignalError`]: on every rank, if a needed signal is NaN at a valid token of any rank.
        """
        for name in sorted(self.needs):
            values = signals.required(name)
            if values.shape != signals.mask.shape:
                raise ValueError(
                    f"Signals.{name} must have the shape of the mask, {tuple(signals.mask.shape)}, got "
                    f"{tuple(values.shape)}."
                )
            if values.is_floating_point():
                pool.check(values, signals.mask, name)
        return self._weigh(signals, pool, ranks)

    def _weigh(self, signals: Signals, pool: Pool, ranks: Ranks) -> Credit:
        weights = mass = signals.mask.bool().float()
        signals = replace(signals, valid=signals.mask)
        for rule in self.rules:
            seen = signals.narrowed(weights != 0)
            own_pool = pool if rule.pool is None else pool_of(rule.pool, ranks)
            given = rule(seen, own_pool) if rule.trusted else checked_weights(rule, seen, own_pool, ranks)
            weights = weights * given
            if rule.counted:
                mass = mass * given
        return Credit(weights, mass)

    def __call__(self, signals: Signals) -> torch.Tensor:
        """Weights of the batch of one process, shape `(batch, seq)`, before they are normalised; pool `"batch"`."""
        ranks = Ranks()
        return self.apply(signals, pool_of("batch", ranks), ranks).weights

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals that any of the rules reads."""
        return frozenset().union(*(rule.needs for rule in self.rules))

    @property
    def sparse(self) -> bool:
        """Whether some valid tokens get weight 0, so that work can be left out."""
        return any(rule.sparse for rule in self.rules)

    @property
    def selects(self) -> bool:
        """Whether all weights are 0 or 1."""
        return all(rule.selects for rule in self.rules)

    @property
    def scheduled(self) -> bool:
        """Whether the weights depend on the progress of the training, so that `max_steps` has to be known."""
        return any(map(is_scheduled, self.rules))

    @property
    def needs_whole_completions(self) -> bool:
        """Whether a rule mistakes a completion that was cut off."""
        return any(getattr(rule, "needs_whole_completions", False) for rule in self.rules)

    @property
    def mass(self) -> str:
        """
        How the total of [`Credit.mass`] is known: `"from_masks"`, `"one_per_row"` or `"summed"`.

        The total of a rule may be known from its mask. After a rule that leaves out tokens by their scores, even one
        that is not counted, the mask itself is not known beforehand.
        """
        mass, mask_is_known = "from_masks", True
        for rule in self.rules:
            if rule.counted:
                mass = rule.mass if mask_is_known and mass == "from_masks" else "summed"
            mask_is_known = mask_is_known and (rule.mass == "from_masks" or not rule.sparse)
        return mass

    def check_pool(self, name: str) -> None:
        """
        Refuse a pool that does not go with the rules.

        Args:
            name (`str`): The pool of the rules that name none of their own, `entropy_threshold_scope`.

        Raises:
            `ValueError`: if the pools are micro-batches and the total weight of a rule is not known beforehand, or a
                rule has another kind of pool.
        """
        at_loss_time = is_at_loss_time(name)
        for number, rule in enumerate(self.rules, start=1):
            own = name if rule.pool is None else rule.pool
            if is_at_loss_time(own) != at_loss_time:
                raise ValueError(
                    f"token_credit: {rule.name} takes the pool {own!r}, which exists "
                    f"{'only at the loss' if is_at_loss_time(own) else 'before the first update'}, but "
                    f"entropy_threshold_scope is {name!r}. Set entropy_threshold_scope to "
                    f"{' or '.join(repr(other) for other in POOLS if is_at_loss_time(other) == is_at_loss_time(own))}."
                )
            score = getattr(rule, "score", "entropy")
            if at_loss_time and score != "entropy":
                raise ValueError(
                    f"token_credit: {rule.name} with the score {score!r} cannot be used with "
                    f"entropy_threshold_scope={name!r}: scores other than entropy are those of the policy that starts "
                    "a generation batch. Set entropy_threshold_scope to 'batch' or 'sequence'."
                )
            # A rule that is not counted has no total, unless later ones see what it leaves. A user's is not called on
            # made-up scores.
            is_known = Chain(self.rules[:number]).mass == "from_masks" and (rule.trusted or rule.mass == "from_masks")
            if at_loss_time and not is_known:
                raise ValueError(
                    f"token_credit: {rule.name} cannot be used with entropy_threshold_scope={name!r}: the total of "
                    "its weights depends on scores, and those of later micro-batches do not exist at the first "
                    "one's loss. Set entropy_threshold_scope to 'batch' or 'sequence'."
                )

        pools = {name if rule.pool is None else rule.pool for rule in self.rules}
        if at_loss_time and len(self.rules) > 1 and (len(pools) > 1 or not all(rule.trusted for rule in self.rules)):
            raise ValueError(
                f"token_credit: a chain with {'several pools' if len(pools) > 1 else 'a rule of your own'} cannot be "
                f"used with entropy_threshold_scope={name!r}: how much is left of each pool depends on scores, and "
                "those of later micro-batches do not exist at the first one's loss. Set entropy_threshold_scope to "
                "'batch' or 'sequence'."
            )

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        return ", and of these ".join(rule.in_words for rule in self.rules) or "all tokens"

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The parameters that change over the training, by name; one that several rules have, with the rule's name."""
        found = [(rule.name, *item) for rule in self.rules for item in schedules_of(rule).items()]
        names = [name for _, name, _ in found]
        return {name if names.count(name) == 1 else f"{rule}_{name}": value for rule, name, value in found}

    def metrics(self, signals: Signals, ranks: Ranks) -> dict[str, float]:
        """Numbers for the log: the values of the schedules, and what the rules report of a batch."""
        reported = [rule.metrics(signals, ranks) for rule in self.rules if hasattr(rule, "metrics")]
        values = {name: schedule(signals.progress) for name, schedule in self.schedules.items()}
        return values | {name: value for numbers in reported for name, value in numbers.items()}

    def forking_set(self, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """The tokens whose smallest entropy is the threshold, `(batch, seq)`; `None` if the rules have no such set."""
        return self.rules[0].forking_set(weights, mask) if len(self.rules) == 1 else None

    def describe(self) -> list[dict[str, dict[str, Any]]]:
        """The rules and all their parameters in order, `[{rule: {parameter: value}}, ...]`: settings to compare."""
        return [{rule.name: parameters_of(rule)} for rule in self.rules]

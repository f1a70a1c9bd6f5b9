"""Weight 1 on the tokens of largest score, 0 on the others."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .pools import Pool, check_pool_name
from .rules import PackageRule
from .schedules import Constant, Schedule, as_schedule
from .scores import SCORES, check_score, checked_scores
from .signals import Signals


@dataclass(frozen=True)
class TopFraction(PackageRule):
    """
    Weight 1 on exactly `ceil(fraction * n)` tokens of each pool of `n`, those of largest score.

    With the default score they are the forking tokens of "Beyond the 80/20 Rule" (arXiv 2506.01939), section 5.1.

    Args:
        fraction (`float`, `dict` or [`Schedule`], *optional*, defaults to `0.2`):
            In (0, 1]; or a schedule, see [`as_schedule`].
        score (`str`, *optional*, defaults to `"entropy"`):
            Score by which the tokens are ranked, a key of `SCORES`.
        complement (`bool`, *optional*, defaults to `False`):
            Weight 1 on all the other tokens instead (the paper's bottom 80 %).
        pool (`str`, *optional*):
            One of `POOLS`. Defaults to the pool that the chain is given.

    Raises:
        `ValueError`: for a value out of range, or if no token would be left.
    """

    fraction: Any = 0.2
    score: str = "entropy"
    complement: bool = False
    pool: str | None = None

    name: ClassVar[str] = "top_fraction"
    mass: ClassVar[str] = "from_masks"

    def __post_init__(self):
        object.__setattr__(self, "fraction", checked_fraction(self.fraction))
        check_score(self.score)
        if not isinstance(self.complement, bool):
            raise ValueError(f"complement must be true or false, got {self.complement!r}.")
        if self.complement and 1.0 in self.fraction.ends:
            raise ValueError(
                f"complement=True with fraction={self.fraction.describe()} selects no token where the fraction is 1: "
                "it is the complement of the top 100 %. Lower the fraction (the paper's bottom 80 % is 0.2), or set "
                "complement=False to train on all tokens."
            )
        if self.pool is not None:
            check_pool_name(self.pool)

    @property
    def sparse(self) -> bool:
        """Whether some valid tokens get weight 0."""
        return not takes_all(self.fraction)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals that the rule reads."""
        return SCORES[self.score].needs if self.sparse else frozenset()

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        if self.score == "position":
            what = f"the last {in_percent(self.fraction)} of tokens"
        else:
            what = f"the {in_percent(self.fraction)} of tokens with the highest {self.score.replace('_', ' ')}"
        return f"all tokens but {what}" if self.complement else what

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        mask, fraction = signals.mask.bool(), self.fraction(signals.progress)
        if fraction == 1:
            return mask.float()
        selected = pool.top(checked_scores(self.score, signals, pool), mask, fraction)
        return (mask & ~selected if self.complement else selected).float()

    def forking_set(self, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """
        The tokens of highest entropy, whose smallest entropy is the threshold that is logged.

        Args:
            weights (`torch.Tensor` of shape `(batch, seq)`): Weights of the rule, times any positive number.
            mask (`torch.Tensor` of shape `(batch, seq)`): Nonzero at the tokens that the rule could weigh.

        Returns:
            `torch.BoolTensor` of shape `(batch, seq)`, or `None` if the rule ranks by another score.
        """
        if self.score != "entropy":
            return None
        return mask.bool() & ((weights == 0) if self.complement else (weights != 0))


def checked_fraction(value: Any) -> Constant | Schedule:
    """The schedule of a fraction in (0, 1]."""
    return as_schedule(value, name="fraction", low=0, high=1)


def in_percent(fraction: Constant | Schedule) -> str:
    """A fraction, or how it changes, in percent."""
    first, last = (f"{100 * end:g} %" for end in fraction.ends)
    if fraction.is_constant:
        return first
    return f"{first} ({'rising' if fraction.ends[0] < fraction.ends[1] else 'falling'} to {last})"


def takes_all(fraction: Constant | Schedule) -> bool:
    """Whether a fraction is 1 throughout, so that every token is taken."""
    return fraction.is_constant and fraction.ends[0] == 1

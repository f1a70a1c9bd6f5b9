"""Weight 1 on tokens drawn at random: the control of every rule that selects by a score."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .pools import Pool, check_pool_name
from .rules import PackageRule
from .signals import Signals
from .top_fraction import checked_fraction, in_percent, takes_all


@dataclass(frozen=True)
class Random(PackageRule):
    """
    Weight 1 on exactly `ceil(fraction * n)` tokens of each pool of `n`, drawn uniformly.

    Their gradient, divided by their number, is an unbiased estimate of that of all tokens: NAT's uniform estimator
    (arXiv 2603.06619) with a sample of fixed size.

    Args:
        fraction (`float`, `dict` or [`Schedule`], *optional*, defaults to `0.2`):
            In (0, 1]; or a schedule, see [`as_schedule`].
        pool (`str`, *optional*):
            One of `POOLS`. Defaults to the pool that the chain is given.

    Raises:
        `ValueError`: for a value out of range.
    """

    fraction: Any = 0.2
    pool: str | None = None

    name: ClassVar[str] = "random"
    mass: ClassVar[str] = "from_masks"

    def __post_init__(self):
        object.__setattr__(self, "fraction", checked_fraction(self.fraction))
        if self.pool is not None:
            check_pool_name(self.pool)

    @property
    def sparse(self) -> bool:
        """Whether some valid tokens get weight 0."""
        return not takes_all(self.fraction)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals that the rule reads."""
        return frozenset({"priorities"} if self.sparse else ())

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        return f"{in_percent(self.fraction)} of the tokens, drawn at random"

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        fraction = self.fraction(signals.progress)
        if fraction == 1:
            return signals.mask.bool().float()
        return pool.top(signals.required("priorities"), signals.mask, fraction).float()

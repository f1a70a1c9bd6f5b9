"""Weight 1 on the tokens whose score lies in an interval."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch

from .pools import Pool
from .rules import PackageRule
from .schedules import is_number
from .scores import SCORES, check_score, checked_scores
from .signals import Signals


@dataclass(frozen=True)
class Interval(PackageRule):
    """
    Weight 1 on tokens with `low <= score <= high`, 0 on the others.

    With the default score this is RSI (arXiv 2606.31575). No source gives the authors' bounds.

    Args:
        low, high (`float`):
            Bounds, both included, in the unit of the score; for `"relative_surprisal"` 1 is the mean.
        score (`str`, *optional*, defaults to `"relative_surprisal"`):
            A key of `SCORES`.

    Raises:
        `ValueError`: for bounds that leave no room between them.
    """

    low: float
    high: float
    score: str = "relative_surprisal"

    name: ClassVar[str] = "interval"
    sparse: ClassVar[bool] = True
    mass: ClassVar[str] = "summed"

    def __post_init__(self):
        check_score(self.score)
        for name in ("low", "high"):
            value = getattr(self, name)
            if not is_number(value) or not isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}.")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low={self.low} and high={self.high}: swap or widen them.")

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals that the rule reads."""
        return SCORES[self.score].needs

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        return f"tokens with a {self.score.replace('_', ' ')} from {self.low:g} to {self.high:g}"

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        scores = checked_scores(self.score, signals, pool)
        return (signals.mask.bool() & (scores >= self.low) & (scores <= self.high)).float()

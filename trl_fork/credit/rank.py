"""Weights that rise with the rank of a token in its row."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .pools import Pool, accumulator
from .schedules import is_number
from .scores import check_score, checked_scores
from .signals import Signals
from .soft import SoftRule, checked_strength, mean_one, softened, strength_in_words


# With it the top 40 % of ranks carry 80 % of the weight: ln(1 - 0.8) / ln(1 - 0.4) - 1.
POWER = 2.1507


@dataclass(frozen=True)
class Rank(SoftRule):
    """
    Weight in proportion to `(rank / n)^power` on the `n` tokens of each row, with mean 1 in the row.

    The lowest score has rank 1. Equal scores share the mean of their ranks, so that a row of equal scores has weight 1
    everywhere. With the defaults this is GCPO (arXiv 2605.29198), whose code ranks equal scores by an unstable sort.

    Args:
        score (`str`, *optional*, defaults to `"prompt_contrast"`):
            A key of `SCORES`. The default needs a contrast prompt, see `contrast_instruction` of
            [`ForkingGRPOConfig`].
        power (`float`, *optional*, defaults to `2.1507`):
            At least 0. With the default the top 40 % of the tokens carry 80 % of the weight.
        strength (`float`, `dict` or [`Schedule`], *optional*, defaults to `1.0`):
            In [0, 1]: the weight is `1 + strength * (w - 1)`; or a schedule, see [`as_schedule`].

    Raises:
        `ValueError`: for a value out of range.
    """

    score: str = "prompt_contrast"
    power: float = POWER
    strength: Any = 1.0

    name: ClassVar[str] = "rank"

    def __post_init__(self):
        check_score(self.score)
        if not is_number(self.power) or not 0 <= self.power <= 100:
            raise ValueError(
                f"power must be a number from 0 (equal weights) to 100, got {self.power!r}. GCPO's value is {POWER}."
            )
        object.__setattr__(self, "strength", checked_strength(self.strength))

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        score = self.score.replace("_", " ")
        return f"all tokens, weighed by the rank of their {score} in the completion{strength_in_words(self.strength)}"

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        mask = signals.mask.bool()
        levels = mid_ranks(checked_scores(self.score, signals, pool), mask) / mask.sum(1, keepdim=True).clamp(min=1)
        return softened(mean_one(levels**self.power, mask), mask, self.strength(signals.progress))


def mid_ranks(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Ranks within each row, 1 for the lowest; equal scores share the mean of their ranks.

    Args:
        scores (`torch.Tensor` of shape `(batch, seq)`): Without NaN at tokens of the mask.
        mask (`torch.BoolTensor` of shape `(batch, seq)`): The tokens that have a rank.

    Returns:
        `torch.DoubleTensor` of shape `(batch, seq)`: 0 outside of the mask.
    """
    ranks = torch.zeros(mask.shape, dtype=accumulator(scores.device), device=scores.device)
    for row in mask.any(1).nonzero().flatten().tolist():
        _, level, counts = scores[row][mask[row]].unique(return_inverse=True, return_counts=True)
        ranks[row, mask[row]] = (counts.cumsum(0) - (counts - 1) / 2).to(ranks.dtype)[level]
    return ranks

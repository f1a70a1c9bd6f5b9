"""Weights that differ from token to token."""

from typing import Any, ClassVar

import torch

from .pools import accumulator
from .rules import PackageRule
from .schedules import Constant, Schedule, as_schedule
from .scores import SCORES


class SoftRule(PackageRule):
    """Attributes of a rule that weighs every token by a score, with mean 1 in each row."""

    selects: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    mass: ClassVar[str] = "one_per_row"
    score: str

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals that the rule reads."""
        return SCORES[self.score].needs


def mean_one(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Scale the values of each row to mean 1 over the row's tokens.

    Args:
        values (`torch.Tensor` of shape `(batch, seq)`):
            Numbers. Negative ones count as 0: an entropy of 0 may come out as -1e-8.
        mask (`torch.BoolTensor` of shape `(batch, seq)`):
            The tokens; values of others are not read.

    Returns:
        `torch.FloatTensor` of shape `(batch, seq)`: 0 outside of the mask. A row whose values are all 0 has equal
        weights.
    """
    values = values.to(accumulator(values.device)).masked_fill(~mask, 0.0).clamp(min=0.0)
    totals = values.sum(1, keepdim=True)
    scaled = values * mask.sum(1, keepdim=True) / totals.masked_fill(totals == 0, 1.0)
    return torch.where(totals == 0, mask.to(scaled.dtype), scaled).float()


def softened(weights: torch.Tensor, mask: torch.Tensor, strength: float) -> torch.Tensor:
    """`1 + strength * (w - 1)` at the tokens of the mask, 0 at others: `strength` 0 gives every token weight 1."""
    return weights if strength == 1 else (1 + strength * (weights - 1)).masked_fill(~mask, 0.0)


def checked_strength(value: Any) -> Constant | Schedule:
    """The schedule of a strength in [0, 1]."""
    return as_schedule(value, name="strength", low=0, high=1, low_included=True)


def strength_in_words(strength: Constant | Schedule) -> str:
    """How strong a rule is, behind the words for its tokens; nothing if it is so in full throughout."""
    first, last = strength.ends
    if strength.is_constant:
        return "" if first == 1 else f", at strength {first:g}"
    return f", at a strength {'rising' if first < last else 'falling'} from {first:g} to {last:g}"

"""Metrics of weights for the log."""

import torch

from ..ranks import Ranks
from .pools import accumulator


def credit_effect(
    weights: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor, *, ranks: Ranks | None = None
) -> dict[str, float]:
    """
    Measure how unevenly weights are spread, over all ranks.

    Args:
        weights (`torch.Tensor` of shape `(batch, seq)`):
            Factors of the policy term, at least 0. Those of invalid tokens are not read.
        mask (`torch.Tensor` of shape `(batch, seq)`):
            Nonzero at valid tokens.
        advantages (`torch.Tensor` of shape `(batch,)` or `(batch, seq)`):
            One per completion, or per token.
        ranks ([`~ranks.Ranks`], *optional*):
            The processes that take part.

    Returns:
        `dict[str, float]`: `effective_fraction`, `(sum w)^2 / (N sum w^2)` of the `N` valid tokens: 1 for equal
        weights, `K / N` for `K` equal ones among zeros. `weight_max`, the largest weight. `positive_share`, the part
        of `sum w |A|` with `A > 0`. NaN where there is nothing to divide by.
    """
    ranks = ranks or Ranks()
    mask = mask.bool()
    wide = accumulator(weights.device)
    weights = weights.to(wide).masked_fill(~mask, 0.0)
    advantages = advantages.to(wide) if advantages.dim() == 2 else advantages.to(wide).unsqueeze(1)
    force = (weights * advantages.abs()).masked_fill(weights == 0, 0.0)
    positive = force.masked_fill(advantages <= 0, 0.0)
    sums = torch.stack([weights.sum(), (weights**2).sum(), mask.sum().to(wide), positive.sum(), force.sum()])
    total, squares, num_valid, positive_force, all_force = ranks.sum(sums).tolist()
    largest = weights.max() if weights.numel() else weights.new_zeros(())
    return {
        "effective_fraction": ratio(total**2, num_valid * squares),
        "weight_max": ranks.gather(largest).max().item() if num_valid else float("nan"),
        "positive_share": ratio(positive_force, all_force),
    }


def ratio(numerator: float, denominator: float) -> float:
    """The quotient; NaN where there is nothing to divide by."""
    return numerator / denominator if denominator else float("nan")

"""Weights that differ from token to token."""

import torch

from .pools import accumulator


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

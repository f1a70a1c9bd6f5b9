"""From the weights of a chain to those that multiply TRL's policy term."""

import torch

from ..ranks import Ranks
from .chain import Chain, Credit
from .pools import Pool, accumulator
from .signals import Signals


def normalise(weights: torch.Tensor, mass_total: float, num_valid: int, denominator: str) -> torch.Tensor:
    """
    Scale weights so that TRL's division by the number of valid tokens becomes the wanted one.

    Args:
        weights (`torch.Tensor` of shape `(batch, seq)`):
            Weights of a chain.
        mass_total (`float`):
            Total mass of the generation batch over all ranks, for a selection the number of selected tokens.
        num_valid (`int`):
            Its valid tokens.
        denominator (`str`):
            `"selected"`: `weights * num_valid / mass_total`. `"all"`: unchanged.

    Returns:
        `torch.Tensor` of shape `(batch, seq)`.
    """
    if denominator == "all":
        return weights
    if denominator != "selected":
        raise ValueError(f"loss_denominator must be 'selected' or 'all', got {denominator!r}.")
    return weights * (num_valid / (mass_total or 1))


def totals(credit: Credit, mask: torch.Tensor, ranks: Ranks) -> tuple[float, int]:
    """
    Total mass and number of valid tokens over all ranks, from one all-reduce.

    Args:
        credit ([`Credit`]): Credit of this process's rows.
        mask (`torch.Tensor` of shape `(batch, seq)`): Nonzero at valid tokens.
        ranks ([`~ranks.Ranks`]): The processes that take part.
    """
    return _summed([credit.mass], [mask], ranks)


def total_from_masks(
    chain: Chain, masks: list[torch.Tensor], pool: Pool, ranks: Ranks, progress: float = 0.0
) -> tuple[float, int]:
    """
    [`totals`] of micro-batches whose scores do not exist yet.

    A chain whose `mass` is `"from_masks"` has the same total for any scores, so it is applied to zeros.

    Args:
        chain ([`Chain`]): Its `mass` must be `"from_masks"`.
        masks (`list[torch.Tensor]`): Shape `(batch, seq)` each, nonzero at valid tokens; equally many on every rank.
        pool ([`Pool`]): The pool of the rules that name none of their own.
        ranks ([`~ranks.Ranks`]): The processes that take part.
        progress (`float`, *optional*, defaults to `0.0`): Share of the training that is done.
    """
    if chain.mass != "from_masks":
        raise ValueError(f"the total weight of {chain.describe()} is not known from masks: it is {chain.mass!r}.")
    masses = []
    for mask in masks:
        zeros, none = torch.zeros(mask.shape, device=mask.device), torch.zeros_like(mask, dtype=torch.int64)
        signals = Signals(
            mask=mask,
            entropies=zeros,
            log_probs=zeros,
            contrast_log_probs=zeros,
            completion_ids=none,
            priorities=none,
            advantages=zeros.new_zeros(len(mask)),
            groups=none.new_zeros(len(mask)),
            progress=progress,
        )
        masses.append(chain._weigh(signals, pool, ranks).mass)
    return _summed(masses, masks, ranks)


def _summed(masses: list[torch.Tensor], masks: list[torch.Tensor], ranks: Ranks) -> tuple[float, int]:
    wide = accumulator(masks[0].device)
    sums = [torch.stack([a.to(wide).sum(), (b != 0).to(wide).sum()]) for a, b in zip(masses, masks, strict=True)]
    mass_total, num_valid = ranks.sum(torch.stack(sums).sum(0)).tolist()
    return mass_total, int(num_valid)

"""A token among those around it."""

import torch

from .pools import accumulator
from .schedules import is_number


def share_of_window(
    values: torch.Tensor, mask: torch.Tensor, window: int = 101, temperature: float = 1.0
) -> torch.Tensor:
    """
    `exp(x_t / temperature)` over the sum of `exp(x_k / temperature)` of the tokens around `t`.

    A window holds `window // 2` tokens of the mask at either side: the output of a tool, outside of the mask, takes
    no place. At both ends of a row it is reflected (`x_-1 = x_1`), for which at most `n - 1` tokens of the
    row's `n` exist.

    Args:
        values (`torch.Tensor` of shape `(batch, seq)`):
            Such as entropies in nats.
        mask (`torch.Tensor` of shape `(batch, seq)`):
            Nonzero at the tokens that count.
        window (`int`, *optional*, defaults to `101`):
            An odd number of tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            In the units of `values`; the lower it is, the more the largest value of a window stands out.

    Returns:
        `torch.Tensor` of shape `(batch, seq)`: in (0, 1]; 0 outside of the mask. The memory it takes is linear in the
        length of a row.
    """
    mask = mask.bool()
    shares = torch.zeros(mask.shape, dtype=accumulator(values.device), device=values.device)
    for row in mask.any(1).nonzero().flatten().tolist():
        inside = values[row][mask[row]].to(shares.dtype)
        # The largest exponential of the row is 1. Sums of a window by differences of running sums would cancel.
        powers = ((inside - inside.max()) / temperature).exp()
        half = min(window // 2, len(powers) - 1)
        reflected = torch.nn.functional.pad(powers[None, None], (half, half), mode="reflect") if half else powers
        size = 2 * half + 1
        means = torch.nn.functional.avg_pool1d(reflected.reshape(1, 1, -1), size, stride=1)
        shares[row, mask[row]] = powers / (means.flatten() * size)
    return shares


def check_window(window: int, temperature: float) -> None:
    """Refuse a window that has no centre, and a temperature at which exponentials would vanish."""
    if not isinstance(window, int) or isinstance(window, bool) or window < 1 or window % 2 == 0:
        raise ValueError(
            f"window must be an odd whole number of tokens, got {window!r}: the token stands in its middle. Pass 101 "
            "for 50 tokens at either side."
        )
    if not is_number(temperature) or not temperature >= 0.02:
        raise ValueError(
            f"temperature must be a number of at least 0.02, got {temperature!r}: entropies of up to 12 nats are "
            "divided by it and exponentiated. The paper's value is 1.0."
        )

"""
Order statistics over all ranks, without gathering the values.

The K-th largest of N values spread over R ranks is found by counting, digit by digit, over an integer key that sorts
like the value: every round all-reduces one histogram of 256 counts per requested statistic (2 KiB), four rounds for a
float32. The data sent does not depend on N, the result is exact and the same on every rank. `torch.quantile`
on gathered values refuses more than 2**24 of them and interpolates between neighbours, so that the number of tokens
above its threshold is only approximate.
"""

from fractions import Fraction
from math import ceil

import torch


class Ranks:
    """
    The collectives a selection needs. `Ranks()` is a single process, whose methods return their argument.

    Args:
        accelerator ([`~accelerate.Accelerator`], *optional*):
            Its processes are the ranks. All of them must make the same calls in the same order.
    """

    def __init__(self, accelerator=None):
        self.accelerator = accelerator
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.index = 0 if accelerator is None else accelerator.process_index

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over the ranks of a tensor that has the same shape on each of them."""
        return tensor if self.count == 1 else self.accelerator.reduce(tensor, reduction="sum")

    def gather(self, scalar: torch.Tensor) -> torch.Tensor:
        """The values of a scalar tensor on all ranks, shape `(count,)`, in rank order."""
        return scalar.reshape(1) if self.count == 1 else self.accelerator.gather(scalar.reshape(1))

    def gather_vectors(self, vector: torch.Tensor) -> torch.Tensor:
        """The vectors of all ranks, of the same length on each of them, shape `(count, length)`, in rank order."""
        return vector[None] if self.count == 1 else self.accelerator.gather(vector).view(self.count, -1)


def sort_keys(values: torch.Tensor) -> torch.Tensor:
    """Signed integers that order like `values` and are equal exactly where `values` are. NaN is not allowed."""
    if not values.is_floating_point():
        return values.long()
    if values.dtype != torch.float64:
        values = values.float()
    values = values + 0.0  # -0.0 equals 0.0, but its bit pattern does not
    bits = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    return _flip_negative(bits)


def values_of_keys(keys: torch.Tensor) -> torch.Tensor:
    """Inverse of [`sort_keys`] for floating-point values."""
    return _flip_negative(keys).view(torch.float64 if keys.dtype == torch.int64 else torch.float32)


def _flip_negative(bits: torch.Tensor) -> torch.Tensor:
    # Among negative floats a larger bit pattern is a smaller number; flipping all bits but the sign reverses them.
    width = torch.iinfo(bits.dtype).bits
    return bits ^ ((bits >> (width - 1)) & torch.iinfo(bits.dtype).max)


def kth_largest_keys(keys: torch.Tensor, ks: list[int], ranks: Ranks) -> torch.Tensor:
    """
    The `ks`-th largest of the keys of all ranks together.

    Args:
        keys (`torch.Tensor` of shape `(num_local,)`):
            Signed integer keys of this rank. May be empty; its length may differ between ranks.
        ks (`list[int]`):
            Numbers of the statistics, equal on every rank: each between 1 (the maximum) and the number of keys over
            all ranks.
        ranks ([`Ranks`]):
            The processes that take part.

    Returns:
        `torch.Tensor` of shape `(len(ks),)`, of the dtype of `keys`: equal on every rank.
    """
    width = torch.iinfo(keys.dtype).bits
    prefixes = [0] * len(ks)  # the digits found so far
    remaining = torch.tensor(ks, device=keys.device)  # place of the statistic among the keys that share its prefix
    for shift in range(width - 8, -1, -8):
        first = shift == width - 8
        counts = torch.empty(len(ks), 256, dtype=torch.int64, device=keys.device)
        for i, prefix in enumerate(prefixes):
            sharing = keys if first else keys[(keys >> (shift + 8)) == prefix]
            digits = (sharing >> shift) & 0xFF
            if first:  # the first digit carries the sign: 0x80..0xFF are the negative keys
                digits = digits ^ 0x80
            counts[i] = torch.bincount(digits, minlength=256)
        from_largest = ranks.sum(counts).flip(1).cumsum(1)
        position = (from_largest < remaining[:, None]).sum(1)
        passed = torch.where(position > 0, from_largest.gather(1, (position - 1).clamp(min=0)[:, None])[:, 0], 0)
        remaining = remaining - passed
        found = (255 - position).tolist()
        if first:
            prefixes = [digit - 128 for digit in found]
        else:
            prefixes = [(prefix << 8) | digit for prefix, digit in zip(prefixes, found, strict=True)]
    return torch.tensor(prefixes, dtype=keys.dtype, device=keys.device)


def top_k(values: torch.Tensor, k: int, ranks: Ranks) -> torch.Tensor:
    """
    Mark the `k` largest values of all ranks together: exactly `k` of them, whatever the ties.

    Among equal values the lower rank wins, then the lower index, so that the choice does not depend on how the values
    are spread over the ranks, as long as rank order is the order of the rows.

    Args:
        values (`torch.Tensor` of shape `(num_local,)`):
            Values of this rank, without NaN.
        k (`int`):
            Number of values to mark over all ranks, between 1 and the number of values over all ranks.
        ranks ([`Ranks`]):
            The processes that take part.

    Returns:
        `torch.BoolTensor` of shape `(num_local,)`.
    """
    keys = sort_keys(values)
    threshold = kth_largest_keys(keys, [k], ranks)
    above, tied = keys > threshold, keys == threshold
    ties = ranks.gather(tied.sum())
    room = k - ranks.sum(above.sum()) - ties[: ranks.index].sum()  # for the ties of this rank and of those after it
    return above | (tied & (tied.cumsum(0) <= room))


def percentiles(values: torch.Tensor, levels: list[float], ranks: Ranks) -> list[float]:
    """
    For each of `levels`, the smallest value that at least this fraction of all ranks' values does not exceed.

    Args:
        values (`torch.Tensor` of shape `(num_local,)`):
            Values of this rank, without NaN.
        levels (`list[float]`):
            Fractions in (0, 1].
        ranks ([`Ranks`]):
            The processes that take part.

    Returns:
        `list[float]`: one value per level, equal on every rank; NaN if there is no value at all.
    """
    total = int(ranks.sum(torch.tensor(values.numel(), device=values.device)))
    if total == 0:
        return [float("nan")] * len(levels)
    # The levels are read as decimals: in floats 0.55 * 100 is more than 55.
    ks = [total - max(ceil(Fraction(str(level)) * total), 1) + 1 for level in levels]
    return values_of_keys(kth_largest_keys(sort_keys(values), ks, ranks)).tolist()

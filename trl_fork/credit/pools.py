"""
Pools: the sets of tokens over which a rule takes a fraction, a sum or a mean.

All methods take tensors of shape `(batch, seq)` with the rows of this process. Every process must call them in the
same order, because some communicate with the other ranks.
"""

from fractions import Fraction
from math import ceil
from typing import ClassVar

import torch

from .._errors import StatedError
from ..ranks import Ranks, top_k


# Signals that are made of logits
_FROM_LOGITS = {
    "entropies": "entropy",
    "log_probs": "log-probability",
    "contrast_log_probs": "log-probability after the contrast prompt",
}


class NaNSignalError(StatedError):
    """
    A signal is NaN at valid tokens.

    Args:
        message (`str`): Text of the error.
        signal (`str`, *optional*, defaults to `"entropies"`): Name of the signal or score.
    """

    def __init__(self, message: str, signal: str = "entropies"):
        super().__init__(message)
        self.signal = signal


def forking_count(num_tokens: int, fraction: float) -> int:
    """
    `K = ceil(fraction * num_tokens)`, the size of the forking set of a pool of `num_tokens`.

    The fraction is read as the decimal that is written: in floats `ceil(0.55 * 100)` is 56.
    """
    return ceil(Fraction(str(fraction)) * num_tokens)


def accumulator(device: torch.device) -> torch.dtype:
    """The dtype of sums over a batch: float64, and float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class Pool:
    """
    One pool of all valid tokens of this process and of those of `ranks`.

    Args:
        ranks ([`~ranks.Ranks`], *optional*): Processes that take part. A single process by default.
    """

    name: ClassVar[str]
    at_loss_time: ClassVar[bool] = False  # whether the pool exists only when the loss of a micro-batch is computed
    spans_ranks: ClassVar[bool] = True  # if not, the ranks communicate only for errors and the log

    def __init__(self, ranks: Ranks | None = None):
        self.ranks = ranks or Ranks()
        self.members = self.ranks if self.spans_ranks else Ranks()  # the processes whose tokens form a pool together

    def __repr__(self):
        return f"{type(self).__name__}()"

    def top(self, scores: torch.Tensor, mask: torch.Tensor, fraction: float) -> torch.Tensor:
        """
        Mark the tokens of largest score: exactly `ceil(fraction * n)` of the `n` tokens of each pool.

        Args:
            scores (`torch.Tensor` of shape `(batch, seq)`):
                Floats or integers, without NaN at valid tokens. Ties are broken by global row and token index.
            mask (`torch.Tensor` of shape `(batch, seq)`):
                Nonzero at valid tokens.
            fraction (`float`):
                In (0, 1].

        Returns:
            `torch.BoolTensor` of shape `(batch, seq)`: `False` at every invalid token.
        """
        mask = mask.bool()
        if fraction == 1:
            return mask
        selected = torch.zeros_like(mask)
        num_valid = int(self.members.sum(mask.sum()))
        if num_valid:
            selected[mask] = top_k(scores[mask], forking_count(num_valid, fraction), self.members)
        return selected

    def sum(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Sum over the valid tokens of each pool, float64; broadcasts to `(batch, seq)`."""
        return self.members.sum(_masked(values, mask).sum()).reshape(1, 1)

    def mean(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean over the valid tokens of each pool, float64, 0 where there is none; broadcasts to `(batch, seq)`."""
        return self.sum(values, mask) / self.sum(torch.ones_like(values), mask).clamp(min=1)

    def mean_lowest(self, values: torch.Tensor, chosen: torch.Tensor) -> float:
        """
        The smallest value among the chosen tokens of each pool, averaged over the pools of all ranks that have one.

        Args:
            values (`torch.Tensor` of shape `(batch, seq)`): For entropies of the forking set, this is the threshold.
            chosen (`torch.BoolTensor` of shape `(batch, seq)`): The chosen tokens.

        Returns:
            `float`: equal on every rank; NaN if no token is chosen.
        """
        lowest = self._lowest(values.float().masked_fill(~chosen, float("inf")))
        ranks = self.ranks
        if self.spans_ranks:
            lowest = ranks.gather(lowest).min().reshape(1)
            ranks = Ranks()  # every rank has the value now
        exists = lowest.isfinite()
        total, count = ranks.sum(torch.stack([lowest[exists].sum(), exists.sum().float()])).tolist()
        return total / count if count else float("nan")

    def _lowest(self, values: torch.Tensor) -> torch.Tensor:
        return values.min().reshape(1) if values.numel() else values.new_full((1,), float("inf"))

    def check(self, values: torch.Tensor, mask: torch.Tensor, name: str) -> None:
        """
        Raise [`NaNSignalError`] on every rank if any rank holds a NaN at a valid token. `name` is the signal's.

        A comparison with NaN is always False, so a single one would silently empty or fill the selection of all ranks.
        """
        mask = mask.bool()
        num_nan, num_valid = self.ranks.sum(torch.stack([(torch.isnan(values) & mask).sum(), mask.sum()])).tolist()
        if num_nan:
            cause = "the logits hold NaN or infinite values there."
            if name not in _FROM_LOGITS:
                cause = "the signals it is computed from hold NaN or infinite values there."
            what = _FROM_LOGITS.get(name, name)
            raise NaNSignalError(f"{num_nan} of {num_valid} valid tokens have a NaN {what}: {cause}", name)


class BatchPool(Pool):
    """The generation batch of all ranks."""

    name = "batch"


class MicroBatchPool(Pool):
    """The current micro-batch of all ranks."""

    name = "micro_batch"
    at_loss_time = True


class LocalPool(Pool):
    """The current micro-batch of one rank."""

    name = "local"
    at_loss_time = True
    spans_ranks = False


class SequencePool(Pool):
    """Each completion is a pool of its own."""

    name = "sequence"
    spans_ranks = False

    def top(self, scores, mask, fraction):
        mask = mask.bool()
        if fraction == 1:
            return mask
        lowest = torch.finfo(scores.dtype).min if scores.is_floating_point() else torch.iinfo(scores.dtype).min
        # Valid tokens come first, by falling score. Both sorts are stable, so ties stay in token order.
        order = scores.masked_fill(~mask, lowest).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, mask.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
        counts = [forking_count(n, fraction) for n in mask.sum(1).tolist()]
        places = torch.arange(mask.shape[1], device=mask.device)
        chosen = places < torch.tensor(counts, device=mask.device).view(-1, 1)
        return torch.zeros_like(mask).scatter(1, order, chosen)

    def sum(self, values, mask):
        return _masked(values, mask).sum(1, keepdim=True)

    def _lowest(self, values):
        return values.amin(1) if values.numel() else values.new_zeros(0)


_POOLS = {pool.name: pool for pool in (BatchPool, MicroBatchPool, LocalPool, SequencePool)}
POOLS = tuple(_POOLS)


def pool_of(name: str, ranks: Ranks | None = None) -> Pool:
    """The pool of that name, one of `POOLS`, over `ranks`."""
    check_pool_name(name)
    return _POOLS[name](ranks)


def is_at_loss_time(name: str) -> bool:
    """Whether the pool of that name exists only when the loss of a micro-batch is computed."""
    check_pool_name(name)
    return _POOLS[name].at_loss_time


def check_pool_name(name: str) -> None:
    if name not in POOLS:
        raise ValueError(f"pool must be one of {list(POOLS)}, got {name!r}.")


def _masked(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.to(accumulator(values.device)).masked_fill(~mask.bool(), 0.0)

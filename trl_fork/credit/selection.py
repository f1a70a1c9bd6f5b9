"""
Which tokens are trained on: the forking set, its complement, or a random set of the same size.

Pure functions of tensors. `entropies` are in nats, `mask` is 1 at the tokens that may be selected (completion tokens
that are neither padding, nor tool output, nor of a completion that is left out); what stands elsewhere is never read.
Only this module may assume that a selection is boolean: everything after it multiplies by float weights.
"""

from fractions import Fraction
from math import ceil

import torch

from ..ranks import Ranks, top_k


TOKEN_SELECTIONS = ("high_entropy", "low_entropy", "random")
ENTROPY_THRESHOLD_SCOPES = ("batch", "micro_batch", "local", "sequence")


class NaNEntropyError(ValueError):
    """Entropies are NaN at tokens that could be selected."""


def forking_count(num_tokens: int, fraction: float) -> int:
    """
    `K = ceil(fraction * num_tokens)`, the size of the forking set of a pool of `num_tokens`.

    The fraction is taken as the decimal it is written as: in floats `ceil(0.55 * 100)` is 56.
    """
    return ceil(Fraction(str(fraction)) * num_tokens)


def selected_count(pool_sizes: list[int], fraction: float, rule: str) -> int:
    """Number of tokens that `rule` selects over pools of the given sizes. Needs no entropies."""
    total = sum(forking_count(size, fraction) for size in pool_sizes)
    return sum(pool_sizes) - total if rule == "low_entropy" else total


def check_entropies(entropies: torch.Tensor, mask: torch.Tensor, ranks: Ranks | None = None) -> None:
    """
    Raise [`NaNEntropyError`] on every rank if any rank holds a NaN entropy at a valid position.

    Comparing with a NaN is always False, so that one of them would silently empty or fill the selection of all ranks.
    """
    ranks = ranks or Ranks()
    mask = mask.bool()
    counts = torch.stack([(torch.isnan(entropies) & mask).sum(), mask.sum()])
    num_nan, num_valid = ranks.sum(counts).tolist()
    if num_nan:
        raise NaNEntropyError(
            f"{num_nan} of {num_valid} valid tokens have a NaN entropy: the logits hold NaN or infinite values there."
        )


def select_tokens(
    entropies: torch.Tensor,
    mask: torch.Tensor,
    fraction: float,
    *,
    rule: str = "high_entropy",
    priorities: torch.Tensor | None = None,
    ranks: Ranks | None = None,
) -> torch.Tensor:
    """
    Select tokens from one pool, all valid tokens of `mask` (over all `ranks`).

    With `N` valid tokens the forking set is the `K = ceil(fraction * N)` of largest entropy: exactly `K`, at least one
    if there is any valid token, ties broken by row and token index. (The paper's section 5.1 keeps `H >= tau` with
    `tau` the matching threshold; its released code keeps exactly `K`, which is the same without ties.)

    Args:
        entropies (`torch.Tensor` of shape `(batch, seq)`):
            Token entropies in nats.
        mask (`torch.Tensor` of shape `(batch, seq)`):
            Nonzero at valid tokens. Entropies elsewhere are ignored, whatever they are.
        fraction (`float`):
            `rho` in (0, 1], the fraction of the pool in the forking set.
        rule (`str`, *optional*, defaults to `"high_entropy"`):
            `"high_entropy"`: the forking set. `"low_entropy"`: all valid tokens but the forking set (the paper's
            bottom 80 %). `"random"`: the `K` tokens of largest `priorities`, whatever their entropy.
        priorities (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Required by `"random"`, see [`random_priorities`].
        ranks ([`~ranks.Ranks`], *optional*):
            Processes whose tokens form the pool together. A single process by default.

    Returns:
        `torch.BoolTensor` of shape `(batch, seq)`: `True` where selected, `False` at every invalid position.

    Raises:
        `ValueError`: if `fraction` or `rule` is out of range, if shapes differ, if `priorities` are missing, or if an
            entropy is NaN at a valid position (naming how many are).

    Example:
        ```python
        >>> import torch
        >>> from trl_fork import select_tokens
        >>> entropies = torch.tensor([[0.1, 2.0, 0.0], [1.5, 0.3, 9.9]])
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])  # the last token is padding
        >>> select_tokens(entropies, mask, 0.4)
        tensor([[False,  True, False],
                [ True, False, False]])
        ```
    """
    scores, mask, ranks = _checked(entropies, mask, fraction, rule, priorities, ranks)
    selected = torch.zeros_like(mask)
    num_valid = int(ranks.sum(mask.sum()))
    if num_valid:
        selected[mask] = top_k(scores[mask], forking_count(num_valid, fraction), ranks)
    return mask & ~selected if rule == "low_entropy" else selected


def select_tokens_per_sequence(
    entropies: torch.Tensor,
    mask: torch.Tensor,
    fraction: float,
    *,
    rule: str = "high_entropy",
    priorities: torch.Tensor | None = None,
    ranks: Ranks | None = None,
) -> torch.Tensor:
    """[`select_tokens`] with every row a pool of its own. `ranks` only agree on errors."""
    scores, mask, ranks = _checked(entropies, mask, fraction, rule, priorities, ranks)
    lowest = torch.finfo(scores.dtype).min if scores.is_floating_point() else torch.iinfo(scores.dtype).min
    # Valid tokens first, by falling score. Both sorts are stable, so that ties stay in token order.
    order = scores.masked_fill(~mask, lowest).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, mask.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
    counts = [forking_count(n, fraction) for n in mask.sum(1).tolist()]
    places = torch.arange(mask.shape[1], device=mask.device)
    chosen = places < torch.tensor(counts, device=mask.device).view(-1, 1)
    selected = torch.zeros_like(mask).scatter(1, order, chosen)
    return mask & ~selected if rule == "low_entropy" else selected


def select_in_scope(entropies, mask, fraction, *, rule, scope, priorities=None, ranks: Ranks) -> torch.Tensor:
    """Select from the pools of `scope`; the arguments hold the batch or micro-batch of this rank."""
    if scope == "sequence":
        return select_tokens_per_sequence(entropies, mask, fraction, rule=rule, priorities=priorities, ranks=ranks)
    if scope == "local":
        if entropies is not None:  # over all ranks: one that raises alone would leave the others waiting
            check_entropies(entropies, mask, ranks)
        ranks = Ranks()
    return select_tokens(entropies, mask, fraction, rule=rule, priorities=priorities, ranks=ranks)


def _checked(entropies, mask, fraction, rule, priorities, ranks):
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}: pass 0.2 to select the top 20 %.")
    if rule not in TOKEN_SELECTIONS:
        raise ValueError(f"rule must be one of {TOKEN_SELECTIONS}, got {rule!r}.")
    if rule == "random" and priorities is None:
        raise ValueError("rule='random' needs `priorities`, see `random_priorities`.")
    scores = priorities if rule == "random" else entropies
    if scores.shape != mask.shape or scores.dim() != 2:
        raise ValueError(
            f"entropies (or priorities) and mask must share one (batch, seq) shape, got {tuple(scores.shape)} and "
            f"{tuple(mask.shape)}."
        )
    ranks = ranks or Ranks()
    if entropies is not None:  # a random selection may come before anybody has computed them
        check_entropies(entropies, mask, ranks)
    return scores, mask.bool(), ranks


def random_priorities(
    seed: int, generation: tuple[int, ...], first_row: int, shape: tuple[int, int], device=None
) -> torch.Tensor:
    """
    Uniform random priorities of tokens, a hash of where a token stands and of nothing else.

    A generator's stream would depend on how many ranks draw from it and on how often it was used before, so that a run
    on another number of GPUs, or a resumed one, would train on other tokens.

    Args:
        seed (`int`): Seed of the run.
        generation (`tuple[int, ...]`): What names the generation batch within the run.
        first_row (`int`): Index, within the generation batch of all ranks, of the first row wanted.
        shape (`tuple[int, int]`): `(batch, seq)`.
        device (`torch.device`, *optional*): Where the result lives.

    Returns:
        `torch.LongTensor` of shape `shape`.
    """
    state = torch.tensor(seed, dtype=torch.int64, device=device)
    for part in generation:
        state = _splitmix64(state ^ part)
    rows = torch.arange(first_row, first_row + shape[0], dtype=torch.int64, device=device)
    tokens = torch.arange(shape[1], dtype=torch.int64, device=device)
    return _splitmix64(_splitmix64(state ^ rows)[:, None] ^ tokens)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    # Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), in wrapping int64.
    def shifted(value, bits):  # logical, where torch's >> is arithmetic
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    x = x - 0x61C8864680B583EB  # + 0x9E3779B97F4A7C15 modulo 2**64
    x = (x ^ shifted(x, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ shifted(x, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ shifted(x, 31)

"""
Which tokens are selected: the forking set, its complement, or a random set of the same size.

`entropies` are in nats, `mask` is 1 at the tokens that may be selected (completion tokens that are neither padding,
nor tool output, nor of a completion that is left out). Values elsewhere are never read.
"""

import torch

from ..random_streams import row_hashes, splitmix64, token_hashes
from ..ranks import Ranks
from .pools import BatchPool


TOKEN_SELECTIONS = ("high_entropy", "low_entropy", "random")


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
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}: pass 0.2 to select the top 20 %.")
    if rule not in TOKEN_SELECTIONS:
        raise ValueError(f"rule must be one of {TOKEN_SELECTIONS}, got {rule!r}.")
    scores = entropies
    if rule == "random":
        if priorities is None:
            raise ValueError("rule='random' needs `priorities`, see `random_priorities`.")
        scores = priorities
    if scores.shape != mask.shape or scores.dim() != 2:
        raise ValueError(
            f"entropies (or priorities) and mask must share one (batch, seq) shape, got {tuple(scores.shape)} and "
            f"{tuple(mask.shape)}."
        )
    pool = BatchPool(ranks)
    if entropies is not None:  # a random selection needs no entropies
        pool.check(entropies, mask, "entropies")
    selected = pool.top(scores, mask, fraction)
    return mask.bool() & ~selected if rule == "low_entropy" else selected


def random_priorities(
    seed: int, generation: tuple[int, ...], first_row: int, shape: tuple[int, int], device=None
) -> torch.Tensor:
    """
    Uniform random priorities of tokens, a hash of the place of a token and of nothing else.

    A run on another number of GPUs, or a resumed one, trains on the same tokens.

    Args:
        seed (`int`): Seed of the run.
        generation (`tuple[int, ...]`): Name of the generation batch within the run.
        first_row (`int`): Index, within the generation batch of all ranks, of the first row wanted.
        shape (`tuple[int, int]`): `(batch, seq)`.
        device (`torch.device`, *optional*): Device of the result.

    Returns:
        `torch.LongTensor` of shape `shape`.
    """
    rows = torch.arange(first_row, first_row + shape[0], device=device)
    return token_hashes(row_hashes(seed, generation, rows)[:, None], torch.arange(shape[1], device=device))


def hash_again(priorities: torch.Tensor) -> torch.Tensor:
    """Priorities that are independent of the given ones, of the same shape, for a second draw."""
    return splitmix64(priorities)

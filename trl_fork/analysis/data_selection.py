"""
Which responses to train on: their scores, their order, and how many of each pool and length.

The selection by High-Entropy Sum ("Unified Data Selection for LLM Reasoning",
[arXiv 2605.22389](https://arxiv.org/abs/2605.22389)) and its controls: other scores of the same entropies, the lowest,
random and longest responses, and a selection that has the lengths of the candidates. These are pure functions of lists
with one value per response of the file; a row is the place of a response in it.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from ..credit import forking_count, random_priorities
from .statistics import high_entropy_sum


SCORES = ("high_entropy_sum", "entropy_sum", "high_entropy_mean", "length")
OF_HIGH_ENTROPY = ("high_entropy_sum", "high_entropy_mean")  # the scores of some tokens, not of all
ORDERS = ("highest", "lowest", "random", "longest")
TOP_TOKENS = 0.005  # of arXiv 2605.22389
MAX_LENGTH_STRATA = 10


def response_score(
    entropies: np.ndarray, score: str, *, top_tokens: float = TOP_TOKENS, entropy_threshold: float | None = None
) -> float:
    """
    Score of one response.

    Args:
        entropies (`np.ndarray` of shape `(num_tokens,)`):
            Entropies of its tokens, in nats.
        score (`str`):
            `"high_entropy_sum"`: the sum of the entropies of its high-entropy tokens. `"high_entropy_mean"`: their
            mean, 0 if there are none. `"entropy_sum"`: the sum over all tokens. `"length"`: the number of tokens.
        top_tokens (`float`, *optional*, defaults to `0.005`):
            The high-entropy tokens are the `ceil(top_tokens * n)` of largest entropy of the `n` tokens.
        entropy_threshold (`float`, *optional*):
            The high-entropy tokens are those of more entropy than this, in nats, instead.

    Returns:
        `float`: in nats, or a number of tokens.

    Raises:
        `ValueError`: for an unknown score, or `top_tokens` out of range.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}.")
    if score == "length":
        return len(entropies)
    if score == "entropy_sum":
        return float(entropies.sum(dtype=np.float64))
    if entropy_threshold is None:
        count, total = forking_count(len(entropies), top_tokens), high_entropy_sum(entropies, top_tokens)
    else:
        # NumPy would round the threshold to the float32 of the entropies.
        above = entropies[entropies.astype(np.float64) > entropy_threshold]
        count, total = len(above), float(above.sum(dtype=np.float64))
    return total if score == "high_entropy_sum" else total / max(count, 1)


def sort_keys(order: str, scores: Sequence[float], lengths: Sequence[int], *, seed: int = 0) -> list[float]:
    """
    One number per response, smallest for the one that is selected first.

    The draw of `"random"` is a hash of the seed and the row: it does not depend on other responses, on which of them
    are candidates or on how many are selected, so that a larger selection contains a smaller one.

    Args:
        order (`str`): One of `ORDERS`.
        scores (`Sequence[float]`): Scores of the responses.
        lengths (`Sequence[int]`): Their numbers of tokens.
        seed (`int`, *optional*, defaults to `0`): Seed of `"random"`, an integer of 64 bits.

    Returns:
        `list[float]`: of integers for `"random"` and `"longest"`.

    Raises:
        `ValueError`: for an unknown order, or scores that cannot be ordered.
    """
    if missing := [row for row, score in enumerate(scores) if isnan(score)]:
        raise ValueError(
            f"The scores of {len(missing)} of {len(scores)} responses are NaN, the first that of response "
            f"{missing[0] + 1}: numbers without an order. The logits of the model are not finite; try --dtype float32."
        )
    if order == "highest":
        return [-score for score in scores]
    if order == "lowest":
        return list(scores)
    if order == "longest":
        return [-length for length in lengths]
    if order == "random":
        # Without a generation, which hashes the seed, seed 1 would draw the rows of seed 0, two by two exchanged.
        return [-priority for priority in random_priorities(seed, (0,), 0, (len(scores), 1))[:, 0].tolist()]
    raise ValueError(f"order must be one of {ORDERS}, got {order!r}.")


@dataclass(frozen=True)
class Stratum:
    """
    Candidates that compete with each other.

    Args:
        rows (`list[int]`): Their rows.
        count (`int`): Number of them to select, at most all.
    """

    rows: list[int]
    count: int


def make_strata(
    pools: Sequence[str],
    lengths: Sequence[int],
    candidates: Iterable[int],
    *,
    fraction: float | None = None,
    num_selected: int | None = None,
    match_length: bool = False,
) -> list[Stratum]:
    """
    Divide the candidates into pools, and with `match_length` each pool into strata of similar length.

    The `n` candidates of a pool, of which `k` are selected, have `min(10, k)` strata: deciles of length, or coarser
    ones, each of which has a choice. Responses of one length are in one stratum. Over the strata from the shortest on,
    `k` is rounded cumulatively, half up: of the `c` candidates up to any boundary `k * c / n` are selected, to within
    1/2, so that the selection has the candidates' distribution of lengths. `k` is the same as without matching.

    Args:
        pools (`Sequence[str]`): Name of the pool of each response.
        lengths (`Sequence[int]`): Number of tokens of each response.
        candidates (`Iterable[int]`): Rows that may be selected.
        fraction (`float`, *optional*): Fraction of the candidates of each pool to select, rounded up.
        num_selected (`int`, *optional*): Number of candidates of each pool to select, instead; all if there are fewer.
        match_length (`bool`, *optional*, defaults to `False`): Whether to select the same fraction of each length.

    Returns:
        `list[Stratum]`: the pools in the order of their first candidates, in each the strata by rising length.

    Raises:
        `ValueError`: if not one of `fraction` and `num_selected` is given.
    """
    if (fraction is None) == (num_selected is None):
        raise ValueError(f"give one of fraction and num_selected, got {fraction} and {num_selected}.")
    rows_of: dict[str, list[int]] = {}
    for row in candidates:
        rows_of.setdefault(pools[row], []).append(row)
    strata = []
    for rows in rows_of.values():
        count = _count(len(rows), fraction, num_selected)
        strata += _by_length(rows, count, lengths) if match_length else [Stratum(rows, count)]
    return strata


def _count(size: int, fraction: float | None, num_selected: int | None) -> int:
    if num_selected is not None:
        return min(num_selected, size)
    assert fraction is not None  # `make_strata` has looked
    return forking_count(size, fraction)


def _by_length(rows: list[int], count: int, lengths: Sequence[int]) -> list[Stratum]:
    number = min(MAX_LENGTH_STRATA, count)
    ordered = sorted(lengths[row] for row in rows)
    groups: dict[int, list[int]] = {}
    for row in sorted(rows, key=lambda row: (lengths[row], row)):
        shorter = bisect_left(ordered, lengths[row])
        groups.setdefault(number * shorter // len(rows), []).append(row)
    strata, seen, taken = [], 0, 0
    for group in groups.values():
        seen += len(group)
        target = (2 * count * seen + len(rows)) // (2 * len(rows))  # count * seen / len(rows), rounded half up
        strata.append(Stratum(group, target - taken))
        taken = target
    return strata


def select_responses(strata: Iterable[Stratum], keys: Sequence[float]) -> set[int]:
    """The `count` rows of smallest key of each stratum; ties to the earlier response."""
    return {row for stratum in strata for row in _ranked(stratum, keys)[: stratum.count]}


def tied_at_the_cut(strata: Iterable[Stratum], keys: Sequence[float]) -> int:
    """Candidates that are left out only because an earlier response has the same key."""
    tied = 0
    for stratum in strata:
        ranked = _ranked(stratum, keys)
        if stratum.count:
            tied += sum(keys[row] == keys[ranked[stratum.count - 1]] for row in ranked[stratum.count :])
    return tied


def num_unmatched(pools: Iterable[Stratum]) -> int:
    """Responses that are selected alone from a whole pool of several, so that no matching of lengths is possible."""
    return sum(pool.count == 1 < len(pool.rows) for pool in pools)


def overlap_by_chance(strata: Iterable[Stratum], others: set[int]) -> float:
    """How many rows of `others` are selected on average if `count` rows of each stratum are drawn at random."""
    return sum(stratum.count * sum(row in others for row in stratum.rows) / len(stratum.rows) for stratum in strata)


def _ranked(stratum: Stratum, keys: Sequence[float]) -> list[int]:
    return sorted(stratum.rows, key=lambda row: (keys[row], row))

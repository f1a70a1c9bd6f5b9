"""
Statistics of token entropies: the analyses of the paper (section 3 and section 5.3) and of its follow-ups.

Pure functions of flat arrays: `entropies` holds one float32 number in nats per token, one response after the other,
and `lengths` says how many tokens each response has. A million tokens take 4 MB. No logits, no model, no TRL. What
each number means stands in `definitions.py`, under the key it is reported by.
"""

from itertools import pairwise

import numpy as np
import torch

from ..credit import forking_count, select_tokens


NEAR_ZERO = 0.01  # nats; the paper counts tokens below it (Fig. 2a)
TRACE_LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 0.95, 1.0)


def percentile(values: np.ndarray, level: float) -> float:
    """The smallest of `values` that at least the fraction `level` of them does not exceed; NaN if there are none."""
    if not len(values):
        return float("nan")
    rank = max(forking_count(len(values), level), 1)
    return float(np.partition(values, rank - 1)[rank - 1])


def distribution(entropies: np.ndarray, num_bins: int = 60) -> dict:
    """Analysis A: how entropies are distributed."""
    counts, edges = np.histogram(entropies, num_bins, range=(0.0, max(float(entropies.max(initial=0.0)), 1e-6)))
    return {
        "num_tokens": len(entropies),
        "mean": _mean(entropies),
        "fraction_below_0.01": _mean(entropies < NEAR_ZERO),
        **{f"p{round(100 * level)}": percentile(entropies, level) for level in (0.5, 0.8, 0.95)},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def select_of_set(entropies: np.ndarray, fraction: float = 0.2) -> np.ndarray:
    """The `ceil(fraction * N)` tokens of largest entropy of all responses, boolean."""
    return _select(entropies, fraction)


def select_of_responses(entropies: np.ndarray, lengths: np.ndarray, fraction: float = 0.2) -> np.ndarray:
    """The `ceil(fraction * n)` tokens of largest entropy of each response, boolean."""
    rows = [_select(row, fraction) for row in split(entropies, lengths)]
    return np.concatenate(rows) if rows else np.zeros(0, dtype=bool)


def split(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Views of a flat array, one per response."""
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def overlap(first: np.ndarray, second: np.ndarray, lengths: np.ndarray, fraction: float = 0.2) -> dict[str, float]:
    """
    Analysis D: the share of top-entropy positions that two models have in common, on the same tokens.

    Args:
        first, second (`np.ndarray` of shape `(num_tokens,)`): Entropies under either model.
        lengths (`np.ndarray` of shape `(num_responses,)`): Tokens of each response.
        fraction (`float`, *optional*, defaults to `0.2`): rho in (0, 1].

    Returns:
        `dict[str, float]`: `whole_set`, `per_response` and `expected_by_chance`.

    Raises:
        `ValueError`: if the arrays do not belong to the same tokens.
    """
    _check_aligned(first, second, lengths)
    selected = select_of_set(first, fraction)
    shared = selected & select_of_set(second, fraction)
    selected_by_row = select_of_responses(first, lengths, fraction)
    shared_by_row = selected_by_row & select_of_responses(second, lengths, fraction)
    return {
        "whole_set": _ratio(shared.sum(), selected.sum()),
        "per_response": _ratio(shared_by_row.sum(), selected_by_row.sum()),
        "expected_by_chance": _mean(selected),
    }


def change_by_percentile(reference: np.ndarray, entropies: np.ndarray, num_bins: int = 20) -> list[dict]:
    """
    Analysis E: how the entropy of tokens changed, by the entropy they had under the reference.

    Args:
        reference, entropies (`np.ndarray` of shape `(num_tokens,)`): Before and after.
        num_bins (`int`, *optional*, defaults to `20`): Bins of equal count; each 5 % of the tokens.

    Returns:
        `list[dict]`: one per bin that has tokens, by rising reference entropy.
    """
    _check_aligned(reference, entropies)
    order = np.argsort(reference, kind="stable")
    edges = [i * len(order) // num_bins for i in range(num_bins + 1)]
    bins = []
    for number, (start, end) in enumerate(pairwise(edges)):
        if start == end:
            continue
        tokens = order[start:end]
        change = entropies[tokens].astype(np.float64) - reference[tokens]
        bins.append(
            {
                "percentiles": [100 * number / num_bins, 100 * (number + 1) / num_bins],
                "num_tokens": end - start,
                "reference_min": float(reference[tokens[0]]),
                "reference_max": float(reference[tokens[-1]]),
                "mean_change": _mean(change),
                "fraction_increased": _mean(change > 0),
                "fraction_decreased": _mean(change < 0),
            }
        )
    return bins


def percentile_trace(entropies: np.ndarray, levels: tuple[float, ...] = TRACE_LEVELS) -> list[float]:
    """Analysis F: percentiles of one model's entropies, in nats."""
    ordered = np.sort(entropies)
    return [percentile(ordered, level) for level in levels]


def position_profile(entropies: np.ndarray, lengths: np.ndarray, selected: np.ndarray, num_bins: int = 20) -> dict:
    """Entropy and selection against relative position in the response."""
    _check_aligned(entropies, selected, lengths)
    lengths = np.asarray(lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    # (2 t + 1) / 2 n in integers: a position is never on the wrong side of an edge by rounding.
    bins = (2 * (np.arange(len(entropies)) - starts) + 1) * num_bins // (2 * np.repeat(lengths, lengths))
    counts = np.bincount(bins, minlength=num_bins)
    sums = np.bincount(bins, weights=entropies, minlength=num_bins)
    chosen = np.bincount(bins, weights=selected, minlength=num_bins)
    return {
        "mean_entropy": [_ratio(*pair) for pair in zip(sums, counts, strict=True)],
        "selected_fraction": [_ratio(*pair) for pair in zip(chosen, counts, strict=True)],
        "num_tokens": counts.tolist(),
    }


def length_summary(entropies: np.ndarray, lengths: np.ndarray) -> dict:
    """How the length of a response goes with its entropy."""
    lengths = np.asarray(lengths)
    means = response_means(entropies, lengths)
    return {
        "mean": _mean(lengths),
        "pearson_with_mean_entropy": correlation(lengths[lengths > 0], means[lengths > 0]),
        "spearman_with_mean_entropy": correlation(ranks(lengths[lengths > 0]), ranks(means[lengths > 0])),
    }


def correctness_summary(entropies, lengths, selected, correct: list[bool | None]) -> dict:
    """Correct against incorrect responses; those whose correctness is not known are left out."""
    rows, chosen = split(entropies, lengths), split(selected, lengths)
    means = response_means(entropies, lengths)
    summary = {}
    for name, wanted in (("correct", True), ("incorrect", False)):
        group = [i for i, value in enumerate(correct) if value is wanted and len(rows[i])]
        tokens = np.concatenate([rows[i] for i in group]) if group else np.zeros(0)
        summary[name] = {
            "num_responses": len(group),
            "num_tokens": len(tokens),
            "mean_length": _mean([len(rows[i]) for i in group]),
            "mean_entropy": _mean(tokens),
            "mean_response_entropy": _mean(means[group]),
            "selected_fraction": _mean(np.concatenate([chosen[i] for i in group]) if group else []),
            "mean_high_entropy_sum": _mean([high_entropy_sum(rows[i]) for i in group]),
        }
    return summary


def scope_summary(entropies: np.ndarray, lengths: np.ndarray, fraction: float = 0.2) -> dict:
    """What the threshold scopes `batch` and `sequence` would select."""
    selected, by_row = select_of_set(entropies, fraction), select_of_responses(entropies, lengths, fraction)
    shares = np.array([row.mean() for row in split(selected, lengths) if len(row)])
    return {
        "selected_fraction_of_responses": {
            f"p{round(100 * level)}": percentile(shares, level) for level in (0.0, 0.05, 0.5, 0.95, 1.0)
        },
        "batch_and_sequence_overlap": _ratio((selected & by_row).sum(), selected.sum()),
    }


def high_entropy_sum(entropies: np.ndarray, fraction: float = 0.005) -> float:
    """
    HES of one response: the sum of the `ceil(fraction * n)` largest of its `n` entropies, in nats; 0 without tokens.

    "Unified Data Selection for LLM Reasoning" ([arXiv 2605.22389](https://arxiv.org/abs/2605.22389)), whose fraction
    is 0.5 %. Short responses count with one token at least.

    Example:
        ```python
        >>> import numpy as np
        >>> from trl_fork.analysis import high_entropy_sum
        >>> high_entropy_sum(np.array([0.0, 2.0, 0.5, 1.5]), fraction=0.5)
        3.5
        ```
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}: pass 0.005 for the top 0.5 %.")
    count = forking_count(len(entropies), fraction)
    return float(np.sort(entropies)[len(entropies) - count :].sum(dtype=np.float64))


def response_means(entropies: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Mean entropy of each response, NaN for an empty one."""
    return np.array([_mean(row) for row in split(entropies, lengths)])


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation; NaN with fewer than two points or where one side is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs, as Spearman's correlation wants."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[groups]


def _select(entropies: np.ndarray, fraction: float) -> np.ndarray:
    row = torch.from_numpy(np.ascontiguousarray(entropies))[None]
    return select_tokens(row, torch.ones_like(row), fraction)[0].numpy()


def _mean(values) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")


def _ratio(numerator, denominator) -> float:
    return float(numerator / denominator) if denominator else float("nan")


def _check_aligned(first: np.ndarray, second: np.ndarray, lengths: np.ndarray | None = None) -> None:
    total = len(first) if lengths is None else int(np.sum(lengths))
    if not len(first) == len(second) == total:
        raise ValueError(
            f"The arrays do not belong to the same tokens: {len(first)} and {len(second)} of them, {total} expected."
        )

"""
Statistics of token entropies: the analyses of the paper (section 3 and section 5.3) and of its follow-ups.

These are pure functions of flat arrays: `entropies` holds one float32 number in nats per token, one response after
the other, and `lengths` says how many tokens each response has. A million tokens take 4 MB. The functions need no
logits, no model and no TRL. `definitions.py` says what each number means, under its key.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch

from ..credit import forking_count, select_tokens


NEAR_ZERO = 0.01  # nats; the paper counts tokens below it (Fig. 2a)
TRACE_LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 0.95, 1.0)


def percentile(values: np.ndarray, level: float) -> float:
    """
    The smallest of `values` that at least the fraction `level` of them does not exceed; NaN if there are no values or
    one of them is NaN.
    """
    return percentile_trace(values, (level,))[0]


def distribution(entropies: np.ndarray, num_bins: int = 60) -> dict:
    """Analysis A: distribution of entropies."""
    counts, edges = np.histogram(entropies, num_bins, range=(0.0, max(float(entropies.max(initial=0.0)), 1e-6)))
    return {
        "num_tokens": len(entropies),
        "mean": _mean(entropies),
        "fraction_below_0.01": _mean(entropies < NEAR_ZERO),
        **dict(zip(("p50", "p80", "p95"), percentile_trace(entropies, (0.5, 0.8, 0.95)), strict=True)),
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
    selected_by_row = select_of_responses(first, lengths, fraction)
    return {
        "whole_set": _mean(select_of_set(second, fraction)[selected]),
        "per_response": _mean(select_of_responses(second, lengths, fraction)[selected_by_row]),
        "expected_by_chance": _mean(selected),
    }


def change_by_percentile(reference: np.ndarray, entropies: np.ndarray, num_bins: int = 20) -> list[dict]:
    """
    Analysis E: how the entropy of tokens changed, by the entropy they had under the reference.

    Args:
        reference, entropies (`np.ndarray` of shape `(num_tokens,)`): Entropies before and after.
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
    """Analysis F: percentiles of one model's entropies, in nats; see [`percentile`]."""
    if not len(entropies):
        return [float("nan")] * len(levels)
    # The levels are read as decimals: in floats 0.55 * 100 is more than 55, which would give the next larger value.
    exact = np.array([Fraction(str(level)) for level in levels])
    return np.quantile(entropies, exact, method="inverted_cdf").tolist()


def position_profile(entropies: np.ndarray, lengths: np.ndarray, selected: np.ndarray, num_bins: int = 20) -> dict:
    """Entropy and selection against relative position in the response."""
    _check_aligned(entropies, selected, lengths)
    lengths = np.asarray(lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    # (2 t + 1) / 2 n in integers: a position is never on the wrong side of an edge by rounding.
    bins = (2 * (np.arange(len(entropies)) - starts) + 1) * num_bins // (2 * np.repeat(lengths, lengths))
    counts = np.bincount(bins, minlength=num_bins)
    sums, chosen = (np.bincount(bins, weights=values, minlength=num_bins) for values in (entropies, selected))
    with np.errstate(invalid="ignore"):  # NaN where a bin has no token
        means, fractions = sums / counts, chosen / counts
    return {"mean_entropy": means.tolist(), "selected_fraction": fractions.tolist(), "num_tokens": counts.tolist()}


def length_summary(entropies: np.ndarray, lengths: np.ndarray) -> dict:
    """Correlation of the length of a response with its entropy."""
    lengths = np.asarray(lengths)
    with_tokens = lengths > 0
    pair = lengths[with_tokens], response_means(entropies, lengths)[with_tokens]
    return {
        "mean": _mean(lengths),
        "pearson_with_mean_entropy": pearson(*pair),
        "spearman_with_mean_entropy": spearman(*pair),
    }


def correctness_summary(entropies, lengths, selected, correct: list[bool | None]) -> dict:
    """Correct and incorrect responses compared. Responses of unknown correctness are left out."""
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
    """Selections of the threshold scopes `batch` and `sequence`, compared."""
    selected, by_row = select_of_set(entropies, fraction), select_of_responses(entropies, lengths, fraction)
    shares = np.array([row.mean() for row in split(selected, lengths) if len(row)])
    percentiles = percentile_trace(shares, (0.0, 0.05, 0.5, 0.95, 1.0))
    return {
        "selected_fraction_of_responses": dict(zip(("p0", "p5", "p50", "p95", "p100"), percentiles, strict=True)),
        "batch_and_sequence_overlap": _mean(by_row[selected]),
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


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation; NaN with fewer than two points or where one side is constant."""
    return _correlation("pearsonr", first, second)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; NaN with fewer than two points or where one side is constant."""
    return _correlation("spearmanr", first, second)


def _correlation(name: str, first: np.ndarray, second: np.ndarray) -> float:
    pair = np.asarray(first, np.float64), np.asarray(second, np.float64)
    # Means of equal numbers differ by rounding, which would correlate by chance.
    if len(first) < 2 or any(np.ptp(values) <= 1e-12 * np.abs(values).max() for values in pair):
        return float("nan")
    from scipy import stats  # takes a second to import

    return float(getattr(stats, name)(*pair).statistic)


def _select(entropies: np.ndarray, fraction: float) -> np.ndarray:
    row = torch.from_numpy(np.ascontiguousarray(entropies))[None]
    return select_tokens(row, torch.ones_like(row), fraction)[0].numpy()


def _mean(values) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")


def _check_aligned(first: np.ndarray, second: np.ndarray, lengths: np.ndarray | None = None) -> None:
    total = len(first) if lengths is None else int(np.sum(lengths))
    if not len(first) == len(second) == total:
        raise ValueError(
            f"The arrays do not belong to the same tokens: {len(first)} and {len(second)} of them, {total} expected."
        )

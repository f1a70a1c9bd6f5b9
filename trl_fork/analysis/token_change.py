"""Which token types gained or lost entropy between two models that have read the same text."""

from collections.abc import Callable, Iterable

import numpy as np

from .responses import Response
from .score_store import ScoreStore


LEVEL = 0.95


def entropy_change(
    token_ids: np.ndarray, before: np.ndarray, after: np.ndarray, problems: np.ndarray, min_count: int
) -> dict:
    """
    Mean change of entropy of each token type, with intervals that hold for all types together.

    Tokens of one problem are not independent, so the standard error is that of a mean over clusters of unequal size.
    With the sum `S_c` and the number `n_c` of a type's changes in problem `c`, their mean `m` over all `n` tokens, and
    the `G` problems that have the type, its square is `G / (G - 1) * sum_c (S_c - m n_c)^2 / n^2`. The intervals are
    Student's with `G - 1` degrees of freedom. Their 5 % are divided among all types that are listed (Bonferroni), as a
    reader looks at the largest changes of many.

    Args:
        token_ids (`np.ndarray` of shape `(num_tokens,)`): Type of each token.
        before, after (`np.ndarray` of shape `(num_tokens,)`): Entropies under either model, in nats.
        problems (`np.ndarray` of shape `(num_tokens,)`): Number of the problem that each token's response answers.
        min_count (`int`): Types seen more often than this are listed.

    Returns:
        `dict`: `num_tokens`, `num_problems`; `all`, the change of the mean over all tokens with its own 95 % interval;
        and `types`, by falling mean change. Each has `count`, `num_problems`, `mean_before`, `mean_after`,
        `mean_change`, `low` and `high`; the ends are `None` where fewer than two problems have the type. Types have
        their `token_id`, and `resolved`, whether the interval leaves out 0.
    """
    change = after.astype(np.float64) - before.astype(np.float64)
    everything = _rows(np.zeros_like(token_ids), before, after, change, problems, 0)
    types = _rows(token_ids, before, after, change, problems, min_count)
    for row in _with_intervals(types, len(types)):
        row["resolved"] = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
    (overall,) = _with_intervals(everything, 1) or [{}]
    overall.pop("token_id", None)
    return {
        "num_tokens": len(token_ids),
        "num_problems": len(np.unique(problems)),
        "all": overall,
        "types": sorted(types, key=lambda row: (-row["mean_change"], row["token_id"])),
    }


def read_change(before: ScoreStore, after: ScoreStore, read: Callable[[], Iterable[Response]], min_count: int) -> dict:
    """
    [`entropy_change`] between two models that have scored the same responses.

    Args:
        before, after (`ScoreStore`): Their scores.
        read (`Callable`): Gives the responses anew at every call.
        min_count (`int`): Argument of [`entropy_change`].

    Raises:
        `ValueError`: if a response has not been scored by both.
    """
    ids: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    problems: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    numbers: dict[str, int] = {}
    for response in read():
        ids.append(np.asarray(response.completion_ids, dtype=np.int64))
        problems.append(np.full(len(ids[-1]), numbers.setdefault(response.problem, len(numbers))))
    entropies = [store.entropies(read()) for store in (before, after)]
    return entropy_change(np.concatenate(ids), entropies[0], entropies[1], np.concatenate(problems), min_count)


def _rows(kinds, before, after, change, problems, min_count: int) -> list[dict]:
    """Counts, means and standard errors of each kind seen often enough, by rising id."""
    ids, place = np.unique(kinds, return_inverse=True)
    counts = np.bincount(place, minlength=len(ids))
    means = {
        name: np.bincount(place, weights=values, minlength=len(ids)) / counts
        for name, values in (("mean_before", before), ("mean_after", after), ("mean_change", change))
    }
    # One cell for every kind and problem that has it
    width = int(problems.max(initial=0)) + 1
    cells, cell = np.unique(place * width + problems, return_inverse=True)
    owner = cells // width
    sums, sizes = np.bincount(cell, weights=change), np.bincount(cell)
    squares = np.bincount(owner, weights=(sums - means["mean_change"][owner] * sizes) ** 2, minlength=len(ids))
    groups = np.bincount(owner, minlength=len(ids))
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.sqrt(groups / (groups - 1) * squares) / counts  # NaN where a single problem has it
    return [
        {
            "token_id": int(ids[i]),
            "count": int(counts[i]),
            "num_problems": int(groups[i]),
            **{name: float(values[i]) for name, values in means.items()},
            "standard_error": None if groups[i] < 2 else float(errors[i]),
        }
        for i in np.flatnonzero(counts > min_count)
    ]


def _with_intervals(rows: list[dict], comparisons: int) -> list[dict]:
    from scipy.stats import t  # takes a second to import

    for row in rows:
        row["low"] = row["high"] = None
        if row["standard_error"] is not None:
            quantile = t.ppf(1 - (1 - LEVEL) / 2 / comparisons, row["num_problems"] - 1)
            row["low"] = row["mean_change"] - float(quantile) * row["standard_error"]
            row["high"] = row["mean_change"] + float(quantile) * row["standard_error"]
    return rows

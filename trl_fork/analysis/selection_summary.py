"""The numbers of one selection of responses, and what each means."""

from collections.abc import Collection, Sequence
from math import isnan

import numpy as np

from .data_selection import Stratum, num_unmatched, overlap_by_chance, select_responses, sort_keys, tied_at_the_cut
from .statistics import pearson, spearman


def summarize(
    score: str,
    scores: Sequence[float],
    lengths: Sequence[int],
    correct: Sequence[bool | None],
    strata: list[Stratum],
    pools: list[Stratum],
    keys: Sequence[float],
    *,
    match_length: bool = False,
) -> dict[str, int | float | None]:
    """
    Numbers by the keys of [`definitions`], `None` where there is nothing to take a mean of or to correlate.

    Args:
        score (`str`): Name of the score, part of the keys of its means.
        scores (`Sequence[float]`): Scores of all responses of the file.
        lengths (`Sequence[int]`): Their numbers of tokens.
        correct (`Sequence[bool | None]`): Whether they are correct; `None` where the file does not say.
        strata (`list[Stratum]`): The candidates, as they competed.
        pools (`list[Stratum]`): The same candidates by pool.
        keys (`Sequence[float]`): Numbers of [`sort_keys`] by which they were selected.
        match_length (`bool`, *optional*, defaults to `False`): Whether the strata are of length.
    """
    candidates = sorted(row for pool in pools for row in pool.rows)
    selected = select_responses(strata, keys)
    longest = select_responses(pools, sort_keys("longest", scores, lengths))
    pair = np.array(scores)[candidates], np.array(lengths)[candidates]
    return {
        "num_responses": len(scores),
        "num_candidates": len(candidates),
        "num_selected": len(selected),
        "num_tied_at_the_cut": tied_at_the_cut(strata, keys),
        **({"num_unmatched": num_unmatched(pools)} if match_length else {}),
        f"mean_{score}_correct": _mean(scores, [row for row, value in enumerate(correct) if value]),
        f"mean_{score}_incorrect": _mean(scores, [row for row, value in enumerate(correct) if value is False]),
        f"mean_{score}_selected": _mean(scores, selected),
        "mean_length_candidates": _mean(lengths, candidates),
        "mean_length_selected": _mean(lengths, selected),
        "pearson_with_length": _or_none(pearson(*pair)),
        "spearman_with_length": _or_none(spearman(*pair)),
        "also_among_the_longest": len(selected & longest) / len(selected) if selected else None,
        "longest_expected_by_chance": overlap_by_chance(strata, longest) / len(selected) if selected else None,
    }


def definitions(
    score: str, *, top_tokens: float | None = None, entropy_threshold: float | None = None, match_length: bool = False
) -> dict[str, str]:
    """What the numbers of [`summarize`] mean; the tokens of the score are those of [`response_score`]."""
    unmatched = "Responses written that are the only one of their pool: their lengths are not matched."
    what = _in_words(score, top_tokens, entropy_threshold)
    return {
        "num_responses": "Responses in the file.",
        "num_candidates": "Correct responses, or all with --include_incorrect.",
        "num_selected": "Responses written.",
        "num_tied_at_the_cut": "Candidates left out only because an earlier response ranks the same.",
        **({"num_unmatched": unmatched} if match_length else {}),
        f"mean_{score}_correct": f"Mean over correct responses of the {what}.",
        f"mean_{score}_incorrect": "The same of incorrect responses.",
        f"mean_{score}_selected": "The same of the responses written.",
        "mean_length_candidates": "Mean number of tokens of the candidates.",
        "mean_length_selected": "Mean number of tokens of the responses written.",
        "pearson_with_length": "Pearson's correlation, over candidates, of the score and the number of tokens.",
        "spearman_with_length": "The same of their ranks.",
        "also_among_the_longest": (
            "Fraction of the responses written that choosing the longest of each pool would have written too."
        ),
        "longest_expected_by_chance": (
            "The same fraction of as many responses drawn at random from each pool (with --match_length from each "
            "stratum of length), on average."
        ),
    }


def _in_words(score: str, top_tokens: float | None, entropy_threshold: float | None) -> str:
    if score == "length":
        return "number of tokens"
    if score == "entropy_sum":
        return "sum of the entropies of all tokens, in nats"
    what = "sum" if score == "high_entropy_sum" else "mean"
    if entropy_threshold is not None:
        return f"{what} of the entropies above {entropy_threshold:g} nats, in nats, 0 where there are none"
    return f"{what} of the entropies of the top {100 * (top_tokens or 0):g} % of tokens, in nats"


def _mean(values: Sequence[float], rows: Collection[int]) -> float | None:
    return float(np.mean([values[row] for row in rows])) if rows else None


def _or_none(value: float) -> float | None:
    return None if isnan(value) else value

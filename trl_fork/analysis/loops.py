"""
Forks per loop of a looped language model, which reads out a distribution after every pass through its layers.

These are pure functions of arrays over all tokens, one response after the other, with one row per loop.
`definitions.py` says what each number means, under its key.
"""

from itertools import pairwise

import numpy as np

from . import statistics


def loop_summary(entropies: np.ndarray, lengths: np.ndarray, fraction: float = 0.2) -> list[dict]:
    """
    Entropies after each loop, and the top-entropy positions that it shares with the last loop.

    Args:
        entropies (`np.ndarray` of shape `(num_loops, num_tokens)`): Entropy after each loop, in nats.
        lengths (`np.ndarray` of shape `(num_responses,)`): Tokens of each response.
        fraction (`float`, *optional*, defaults to `0.2`): rho in (0, 1].

    Returns:
        `list[dict]`: one per loop, the first loop first.

    Raises:
        `ValueError`: if the lengths are not those of the tokens.
    """
    levels = {"p50": 0.5, "p80": 0.8, "p95": 0.95}
    rows = []
    for number, row in enumerate(entropies, start=1):
        shares = statistics.overlap(entropies[-1], row, lengths, fraction)
        rows.append(
            {
                "loop": number,
                "mean_entropy": float(row.mean(dtype=np.float64)) if len(row) else float("nan"),
                **dict(zip(levels, statistics.percentile_trace(row, tuple(levels.values())), strict=True)),
                "fraction_below_0.01": float(np.mean(row < statistics.NEAR_ZERO)) if len(row) else float("nan"),
                "overlap_with_last": {name: shares[name] for name in ("whole_set", "per_response")},
            }
        )
    return rows


def moved_forks(entropies: np.ndarray, fraction: float = 0.2) -> dict[str, np.ndarray]:
    """
    The tokens that are forking tokens at one end of the loops only.

    Either loop selects the same number of tokens, so there are as many resolved forks as late ones.

    Args:
        entropies (`np.ndarray` of shape `(num_loops, num_tokens)`): Entropy after each loop, in nats.
        fraction (`float`, *optional*, defaults to `0.2`): rho in (0, 1].

    Returns:
        `dict[str, np.ndarray]`: booleans of shape `(num_tokens,)`. `resolved`: among the `ceil(rho * N)` tokens of
        largest entropy after the first loop, and not after the last. `late`: the reverse.
    """
    first, last = (statistics.select_of_set(entropies[end], fraction) for end in (0, -1))
    return {"resolved": first & ~last, "late": last & ~first}


def token_table(token_ids: np.ndarray, entropies: np.ndarray, chosen: np.ndarray, num_listed: int) -> list[dict]:
    """
    The token types that are most frequent at chosen positions.

    Args:
        token_ids (`np.ndarray` of shape `(num_tokens,)`): The tokens.
        entropies (`np.ndarray` of shape `(num_loops, num_tokens)`): Entropy after each loop, in nats.
        chosen (`np.ndarray` of shape `(num_tokens,)`): The positions, boolean.
        num_listed (`int`): Most types to list.

    Returns:
        `list[dict]`: by falling number of chosen positions; ties to the smaller token id.
    """
    types, place = np.unique(token_ids[chosen], return_inverse=True)
    counts = np.bincount(place, minlength=len(types))
    first, last = (np.bincount(place, entropies[end][chosen], len(types)) for end in (0, -1))
    return [
        {
            "token_id": int(types[i]),
            "count": int(counts[i]),
            "share": float(counts[i] / np.count_nonzero(token_ids == types[i])),
            "mean_entropy_first": float(first[i] / counts[i]),
            "mean_entropy_last": float(last[i] / counts[i]),
        }
        for i in np.argsort(-counts, kind="stable")[:num_listed].tolist()
    ]


def exit_summary(exit_probs: np.ndarray, entropies: np.ndarray, num_bins: int = 20) -> dict:
    """
    Where the model's gate would leave the loops, and whether it stays longer at forking tokens.

    Args:
        exit_probs (`np.ndarray` of shape `(num_loops, num_tokens)`):
            Probability that the gate leaves after each loop, at the position that predicts the token.
        entropies (`np.ndarray` of shape `(num_loops, num_tokens)`):
            Entropy after each loop, in nats.
        num_bins (`int`, *optional*, defaults to `20`):
            Bins of equal count, by the entropy after the last loop.

    Returns:
        `dict`: with `mean_depth`, `spearman_with_entropy` of the first and of the last loop, and `bins`.
    """
    depth = expected_depth(exit_probs)
    order = np.argsort(entropies[-1], kind="stable")
    edges = [i * len(order) // num_bins for i in range(num_bins + 1)]
    parts = [order[start:end] for start, end in pairwise(edges) if end > start]
    return {
        "probabilities": exit_probs.mean(1, dtype=np.float64).tolist() if len(depth) else [],
        "mean_depth": float(depth.mean()) if len(depth) else float("nan"),
        "spearman_with_entropy": {
            name: statistics.spearman(depth, entropies[end]) for name, end in (("first_loop", 0), ("last_loop", -1))
        },
        "bins": [
            {
                "num_tokens": len(part),
                "mean_entropy": float(entropies[-1][part].mean(dtype=np.float64)),
                "mean_depth": float(depth[part].mean()),
            }
            for part in parts
        ],
    }


def expected_depth(exit_probs: np.ndarray) -> np.ndarray:
    """Expected number of loops, `sum_t t p_t`, shape `(num_tokens,)`, of probabilities `(num_loops, num_tokens)`."""
    return np.arange(1, len(exit_probs) + 1) @ exit_probs.astype(np.float64)

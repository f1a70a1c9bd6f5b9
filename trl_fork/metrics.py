"""What the log says about a selection."""

import torch

from .distributed import Ranks, percentiles


def selection_metrics(
    entropies: torch.Tensor,
    mask: torch.Tensor,
    selected: torch.Tensor,
    advantages: torch.Tensor,
    *,
    rule: str,
    scope: str,
    ranks: Ranks,
) -> dict[str, float]:
    """
    Describe a selection over the tokens of all ranks.

    Args:
        entropies, mask (`torch.Tensor` of shape `(batch, seq)`): As in [`select_tokens`].
        selected (`torch.Tensor` of shape `(batch, seq)`): Nonzero where selected.
        advantages (`torch.Tensor` of shape `(batch,)`): One per completion.
        rule, scope (`str`): How `selected` was taken.
        ranks ([`~distributed.Ranks`]): The processes that take part.

    Returns:
        `dict[str, float]`, entropies in nats: `selected_fraction` of the valid tokens; `selected_entropy_mean` and
        `unselected_entropy_mean`; `entropy_p50`, `entropy_p80`, `entropy_p95` over all valid tokens;
        `inert_row_fraction` of the completions, those with zero advantage or without a selected token;
        `entropy_threshold`, the smallest entropy in the forking set (the mean of it over pools where `scope` has
        several), absent for `"random"`. NaN where there is nothing to average.
    """
    mask, selected = mask.bool(), selected != 0
    entropies = entropies.float().masked_fill(~mask, 0.0)
    inert = (advantages == 0) | ~selected.any(1)
    num_rows = torch.tensor(len(inert), device=mask.device)
    counts = ranks.sum(torch.stack([mask.sum(), selected.sum(), inert.sum(), num_rows]))
    num_valid, num_selected, num_inert, num_rows = counts.tolist()
    sums = ranks.sum(torch.stack([entropies[selected].sum(), entropies[mask & ~selected].sum()]))
    sum_selected, sum_unselected = sums.tolist()
    p50, p80, p95 = percentiles(entropies[mask], [0.5, 0.8, 0.95], ranks)

    def ratio(numerator, denominator):
        return numerator / denominator if denominator else float("nan")

    metrics = {
        "selected_fraction": ratio(num_selected, num_valid),
        "selected_entropy_mean": ratio(sum_selected, num_selected),
        "unselected_entropy_mean": ratio(sum_unselected, num_valid - num_selected),
        "entropy_p50": p50,
        "entropy_p80": p80,
        "entropy_p95": p95,
        "inert_row_fraction": ratio(num_inert, num_rows),
    }
    if rule != "random":
        forking = mask & ~selected if rule == "low_entropy" else selected
        metrics["entropy_threshold"] = _mean_threshold(entropies, forking, scope, ranks)
    return metrics


def _mean_threshold(entropies: torch.Tensor, forking: torch.Tensor, scope: str, ranks: Ranks) -> float:
    lowest = entropies.masked_fill(~forking, float("inf")).amin(1) if forking.numel() else entropies.new_zeros(0)
    if scope != "sequence":  # the pool spans the rows of this rank
        lowest = lowest.min().reshape(1) if lowest.numel() else entropies.new_full((1,), float("inf"))
    if scope in ("batch", "micro_batch"):
        lowest = ranks.gather(lowest).min().reshape(1)
        ranks = Ranks()  # every rank holds the one threshold now
    exists = lowest.isfinite()
    total, count = ranks.sum(torch.stack([lowest[exists].sum(), exists.sum().float()])).tolist()
    return total / count if count else float("nan")

"""Metrics of a selection for the log."""

import torch

from ..credit import Pool
from ..credit.effect import ratio
from ..ranks import Ranks, percentiles
from ._trl import nanstd
from .batching import without_advantage


def count_metrics(mask, weights, advantages, *, ranks: Ranks) -> dict[str, float]:
    """
    Amount of tokens selected, over all ranks.

    Args:
        mask, weights (`torch.Tensor` of shape `(batch, seq)`): Nonzero at valid tokens, and at those with credit.
        advantages (`torch.Tensor` of shape `(batch,)` or `(batch, seq)`): One per completion, or per token.
        ranks ([`~ranks.Ranks`]): The processes that take part.

    Returns:
        `dict[str, float]`: `selected_fraction` of the valid tokens, and `inert_row_fraction` of the completions, those
        with zero advantage or without a selected token. NaN where there is nothing to divide by.
    """
    mask, selected = mask.bool(), weights != 0
    inert = without_advantage(advantages) | ~selected.any(1)
    num_rows = torch.tensor(len(inert), device=mask.device)
    counts = ranks.sum(torch.stack([mask.sum(), selected.sum(), inert.sum(), num_rows]))
    num_valid, num_selected, num_inert, num_rows = counts.tolist()
    return {
        "selected_fraction": ratio(num_selected, num_valid),
        "inert_row_fraction": ratio(num_inert, num_rows),
    }


def entropy_metrics(entropies, mask, weights, forking, pool: Pool, *, ranks: Ranks) -> dict[str, float]:
    """
    Entropies of the tokens selected and not selected, over all ranks, in nats.

    Args:
        entropies (`torch.Tensor` of shape `(batch, seq)`): Token entropies.
        mask, weights (`torch.Tensor` of shape `(batch, seq)`): Nonzero at valid tokens, and at those with credit.
        forking (`torch.BoolTensor` of shape `(batch, seq)`, *optional*): Tokens of highest entropy, if the credit rule
            selects by entropy.
        pool ([`~credit.Pool`]): The pools of that selection.
        ranks ([`~ranks.Ranks`]): The processes that take part.

    Returns:
        `dict[str, float]`: `selected_entropy_mean` and `unselected_entropy_mean`; `entropy_p50`, `entropy_p80` and
        `entropy_p95` over all valid tokens; and, if there is a forking set, `entropy_threshold`, its smallest
        entropy (the mean over pools, if there are several). NaN where there is nothing to average.
    """
    mask, selected = mask.bool(), weights != 0
    entropies = entropies.float().masked_fill(~mask, 0.0)
    unselected = mask & ~selected
    counts = ranks.sum(torch.stack([selected.sum(), unselected.sum()])).tolist()
    sums = ranks.sum(torch.stack([entropies[selected].sum(), entropies[unselected].sum()])).tolist()
    p50, p80, p95 = percentiles(entropies[mask], [0.5, 0.8, 0.95], ranks)
    metrics = {
        "selected_entropy_mean": ratio(sums[0], counts[0]),
        "unselected_entropy_mean": ratio(sums[1], counts[1]),
        "entropy_p50": p50,
        "entropy_p80": p80,
        "entropy_p95": p95,
    }
    if forking is not None:
        metrics["entropy_threshold"] = pool.mean_lowest(entropies, forking)
    return metrics


def reward_metrics(rewards, weights, names: list[str], num_generations: int) -> dict[str, float]:
    """
    TRL's metrics of rewards, under its names and by its expressions.

    Args:
        rewards (`torch.Tensor` of shape `(num_groups * num_generations, num_rewards)`):
            NaN where a function could not score a completion.
        weights (`torch.Tensor` of shape `(num_rewards,)`):
            Weights of the functions.
        names (`list[str]`):
            Their names.
        num_generations (`int`):
            Completions per group.

    Returns:
        `dict[str, float]`: `reward`, `reward_std`, `frac_reward_zero_std`, and mean and standard deviation by name.
    """
    total = weighted_sum(rewards, weights)
    spread = nanstd(total.view(-1, num_generations), dim=1)
    metrics = {
        "reward": torch.nanmean(total).item(),
        "reward_std": nanstd(total).item(),
        "frac_reward_zero_std": torch.isclose(spread, torch.zeros_like(spread)).float().mean().item(),
    }
    for name, column in zip(names, rewards.T, strict=True):
        metrics[f"rewards/{name}/mean"] = torch.nanmean(column).item()
        metrics[f"rewards/{name}/std"] = nanstd(column).item()
    return metrics


def weighted_sum(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Total reward of each completion, shape `(rows,)`: NaN where no function could score it.

    TRL's own expression: only the same operations round to the same bits.
    """
    total = (rewards * weights.to(rewards.device).unsqueeze(0)).nansum(dim=1)
    total[torch.isnan(rewards).all(dim=1)] = torch.nan
    return total


LENGTH_METRICS = tuple(
    f"completions/{name}"
    for name in (
        *("mean_length", "min_length", "max_length", "clipped_ratio"),
        *("mean_terminated_length", "min_terminated_length", "max_terminated_length"),
    )
)


def combine_rounds(metrics: dict[str, list[float]], rows: list[int]) -> dict[str, float]:
    """
    TRL's metrics of lengths for several rounds of generation, combined as if they were one round.

    Args:
        metrics (`dict[str, list[float]]`): `LENGTH_METRICS`, one value per round.
        rows (`list[int]`): Completions of each round.
    """
    clipped = metrics["completions/clipped_ratio"]
    terminated = [n * (1 - share) for n, share in zip(rows, clipped, strict=True)]
    combined = {}
    for name, values in metrics.items():
        weights = terminated if "terminated" in name else rows
        weighted = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight > 0]
        if not weighted:  # no completion has terminated: TRL's value
            combined[name] = 0.0
        elif "/min_" in name:
            combined[name] = min(value for value, _ in weighted)
        elif "/max_" in name:
            combined[name] = max(value for value, _ in weighted)
        else:
            combined[name] = sum(value * weight for value, weight in weighted) / sum(weight for _, weight in weighted)
    return combined


def partial_metrics(metrics: dict[str, list[float]], num_valid: int, num_seen: int) -> dict[str, list[float]]:
    """
    Rename and rescale TRL's metrics of a training pass that scored `num_seen` of `num_valid` tokens.

    Its `entropy` is dropped, as that of the scoring pass has been logged. Its clip ratios become
    `forking/clip_ratio/*` and `forking/cispo_clip_ratio`, over the tokens scored: the others have ratio 1 and are not
    clipped, so the two counts turn a mean over all valid tokens into one over those scored. Their minima and maxima
    per completion are dropped, and so is `vespo/phi_seq_mean`, a mean over the completions that were not left out.

    Args:
        metrics (`dict[str, list[float]]`): Metrics of the pass.
        num_valid, num_seen (`int`): Tokens over all ranks.
    """
    renamed = {}
    for name, values in metrics.items():
        if name == "entropy" or name.startswith("vespo/") or name in ("clip_ratio/low_min", "clip_ratio/high_max"):
            continue
        if "clip_ratio" in name:
            renamed[f"forking/{name}"] = [value * num_valid / max(num_seen, 1) for value in values]
        else:
            renamed[name] = values
    return renamed

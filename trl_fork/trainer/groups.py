"""Which groups of completions carry a signal, how many to generate next, and for which prompts. Pure functions."""

import random
from functools import lru_cache
from math import ceil, gcd, sqrt

import torch

from ._trl import nanstd


def rows_without_spread(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """
    Mark the completions whose group has one reward only, bit for bit.

    Their advantage is zero by definition. A mean taken in float32 misses it: eight rewards of 0.7 have a float32 mean
    of 0.70000005 and, over a standard deviation of 1e-4, advantages of about 6e-4.

    Args:
        rewards (`torch.Tensor` of shape `(num_groups * num_generations,)` or `(..., num_rewards)`):
            Rewards of whole groups, each in consecutive rows. NaN marks a completion that could not be scored, which
            does not count. With several columns, a group must be uniform in each.
        num_generations (`int`):
            Completions per group.

    Returns:
        `torch.BoolTensor` of shape `(num_groups * num_generations,)`.
    """
    groups = rewards.reshape(-1, num_generations, 1 if rewards.dim() == 1 else rewards.shape[-1])
    lowest = groups.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(1)
    highest = groups.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(1)
    return (highest <= lowest).all(1).repeat_interleave(num_generations)


def rows_without_signal(rewards: torch.Tensor, num_generations: int, *, scale: bool) -> torch.Tensor:
    """
    Mark the completions whose group has no advantage to train on: all are zero, or one is infinite.

    These are the groups with one reward only, and those with a reward that is infinite or so large that the standard
    deviation overflows: a single 1e30 makes every advantage of its group 0 in float32.

    Args:
        rewards (`torch.Tensor` of shape `(num_groups * num_generations,)`):
            Rewards of whole groups, each in consecutive rows. NaN is a completion that could not be scored.
        num_generations (`int`):
            Completions per group.
        scale (`bool`):
            Whether advantages are divided by the group's standard deviation (`scale_rewards="group"`).

    Returns:
        `torch.BoolTensor` of shape `(num_groups * num_generations,)`.
    """
    groups = rewards.view(-1, num_generations)
    advantages = groups - groups.nanmean(1, keepdim=True)
    if scale:
        advantages = advantages / (nanstd(groups, dim=1).unsqueeze(1) + 1e-4)
    moves = (advantages.nan_to_num(nan=0.0) != 0).any(1) & ~(advantages.isinf() | groups.isinf()).any(1)
    return rows_without_spread(rewards, num_generations) | ~moves.repeat_interleave(num_generations)


def choose_groups(informative: list[bool], wanted: int) -> list[int]:
    """
    Choose the groups of a batch, in the order of their generation: the first informative ones and, if there are too
    few, the first of the others.
    """
    first = sorted(range(len(informative)), key=lambda group: not informative[group])
    return sorted(first[:wanted])


def refill_size(informative: int, generated: int, wanted: int, multiple: int) -> int:
    """
    Number of groups to generate next: the missing ones with some reserve, at most a batch.

    At a share `p` of informative groups, `n` fresh ones hold `n p` on average, with a standard deviation of
    `sqrt(n p (1 - p))`. One standard deviation is the reserve. Without it every other round would fall just short, and
    a further round, as slow as its longest completion, would generate a handful of groups.

    Args:
        informative, generated (`int`): Groups so far.
        wanted (`int`): Groups of a full batch.
        multiple (`int`): Divisor of the result, so that every rank generates the same number of rows.
    """
    missing = wanted - informative
    share = max(informative, 1) / generated
    groups = (missing + sqrt(missing * (1 - min(share, 1)))) / share
    return min(ceil(groups / multiple) * multiple, wanted)


def refill_multiple(num_ranks: int, rows_per_rank: int, num_generations: int, rows_per_episode: int) -> int:
    """
    Smallest number of groups, of which any multiple may be generated next.

    Every rank generates as many rows, and whole episodes. A group stays on one rank if it does so in the batch:
    rollout functions may rely on both.

    Args:
        num_ranks (`int`): Processes.
        rows_per_rank (`int`): Rows of a full batch on each of them.
        num_generations (`int`): Rows of a group.
        rows_per_episode (`int`): Rows that are played together; a divisor of the two before.
    """
    parts = 1 if rows_per_rank % num_generations == 0 else num_generations // rows_per_episode
    return num_ranks // gcd(num_ranks, parts)


def draw_prompts(num_prompts: int, seed: int, position: int, count: int) -> list[int]:
    """
    Row numbers `position` to `position + count` of an endless stream over a data set, reshuffled every epoch.

    Refills have a stream of their own: they must neither advance the Trainer's sampler, whose length gives the number
    of steps, nor repeat its order.
    """
    rows: list[int] = []
    while len(rows) < count:
        epoch, start = divmod(position + len(rows), num_prompts)
        rows += _epoch_order(num_prompts, seed, epoch)[start : start + count - len(rows)]
    return rows


@lru_cache(maxsize=2)
def _epoch_order(num_prompts: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"dynamic sampling {seed} {epoch}").sample(range(num_prompts), num_prompts)

"""
Which rows the cards score and train on together, with each of the savings: widths of rows, by micro-batch and card.

A plan is a list of micro-batches, in each of which every card has a list of rows: the tokens that are computed for
each of them, padding included. Nothing is measured. The plans are those of the package.
"""

import random

import torch

from trl_fork.trainer.balancing import plan_passes, spread, spread_to_size
from trl_fork.trainer.batching import plan_window


class Batch:
    """
    Rows of a generation batch and, of these, the rows of one of its optimizer steps.

    Args:
        prompt (`int`): Tokens of a prompt.
        groups, generations (`int`): Groups of an optimizer step, and rows of each.
        steps (`int`): Optimizer steps that share a generation batch.
        longest (`int`): Tokens after which a completion is cut off. The median is an eighth, sigma 0.8, as everywhere.
        inert (`float`): Share of the groups without a gradient.
        cards (`int`): Cards that share the rows.
        micro_batch (`int`): Rows of a micro-batch of a card, without packing.
    """

    def __init__(self, seed, *, prompt, groups, generations, steps, longest, inert, cards, micro_batch):
        rng = random.Random(seed)
        self.prompt, self.cards, self.micro_batch = prompt, cards, micro_batch
        count = groups * generations * steps
        drawn = (int(longest / 8 * rng.lognormvariate(0, 0.8)) for _ in range(count))
        completions = [min(max(length, 4), longest) for length in drawn]
        dead = set(rng.sample(range(groups * steps), round(groups * steps * inert)))
        own = count // cards
        self.generated = [
            completions[i : i + own] for i in range(0, count, own)
        ]  # of each card, whole groups together
        # A card takes the rows of a step anywhere from those that it has generated.
        chosen = [rng.sample(range(card * own, (card + 1) * own), own // steps) for card in range(cards)]
        self.lengths = [[prompt + completions[row] for row in rows] for rows in chosen]
        self.live = [[row // generations not in dead for row in rows] for rows in chosen]
        self.num_batches = own // steps // micro_batch
        # A forward pass that is packed may hold what the widest one without packing would.
        self.budget = micro_batch * (prompt + longest)


def as_drawn(batch, *, cut):
    """Rows in their order, padded to the longest that the card has generated or, if padding is cut, of their pass."""
    widest = [batch.prompt + max(rows) for rows in batch.generated]
    plan = []
    for start in range(0, len(batch.lengths[0]), batch.micro_batch):
        chunks = [rows[start : start + batch.micro_batch] for rows in batch.lengths]
        plan.append([[max(c) if cut else width] * len(c) for c, width in zip(chunks, widest, strict=True)])
    return plan


def ordered(batch, *, leave_out):
    """Rows by length, those without gradient left out as far as every micro-batch of every card keeps a row."""
    active = max(sum(live) if leave_out else len(live) for live in batch.live)
    plans = []
    for lengths, live in zip(batch.lengths, batch.live, strict=True):
        inert = torch.tensor([leave_out and not is_live for is_live in live])
        rows = plan_window(torch.tensor(lengths), inert, batch.num_batches, max(active, batch.num_batches))
        plans.append([[max(lengths[row] for row in chunk)] * len(chunk) for chunk in rows])
    return list(zip(*plans, strict=True))


def packed(batch, *, leave_out, balance):
    """
    Rows without padding, in as few forward passes of at most so many tokens as the fullest card needs.

    Args:
        leave_out (`bool`): Whether rows without gradient are left out.
        balance (`bool`): Whether rows move to the card that has room, or stay where they were generated.
    """
    if balance:
        inert = [[leave_out and not is_live for is_live in live] for live in batch.live]
        plan = plan_passes(batch.lengths, inert, batch.num_batches, batch.budget)
        return [[[batch.lengths[card][row] for card, row in rows] for rows in bins] for bins in plan.passes]
    shares = [
        [length for length, is_live in zip(lengths, live, strict=True) if is_live or not leave_out]
        for lengths, live in zip(batch.lengths, batch.live, strict=True)
    ]
    number = max(len(spread_to_size(share, batch.budget, batch.num_batches)) for share in shares if share)
    return list(
        zip(*([[share[row] for row in rows] for rows in spread(share, number)] for share in shares), strict=True)
    )

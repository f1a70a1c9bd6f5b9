"""Rules as a user would write them, found by their dotted paths."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HalfOfAnswer:
    """Half of the tokens, by surprisal, from the last token `marker` of a row on: in every row by itself."""

    marker: int = 7
    fraction: float = 0.5

    needs = frozenset({"log_probs", "completion_ids"})
    pool = "sequence"

    def __call__(self, signals, pool):
        found = (signals.completion_ids == self.marker) & signals.mask.bool()
        answer = signals.mask.bool() & (found.long().flip(1).cumsum(1).flip(1) - found.long() == 0)
        return pool.top(-signals.log_probs, answer, self.fraction)


@dataclass(frozen=True)
class RowShare:
    """Weights proportional to the entropy, of mean 1 in each row."""

    needs = frozenset({"entropies"})
    sparse = False
    mass = "one_per_row"

    def __call__(self, signals):
        mask = signals.mask.bool()
        entropies = signals.entropies.masked_fill(~mask, 0.0)
        return mask.sum(1, keepdim=True) * entropies / entropies.sum(1, keepdim=True).clamp(min=1e-9)


def long_rows(signals):
    """Twice the weight in rows of more than five tokens: known from the mask."""
    return torch.ones_like(signals.mask) + (signals.mask.sum(1, keepdim=True) > 5)


long_rows.needs = ()
long_rows.sparse = False
long_rows.mass = "from_masks"


def later(signals):
    """Weight 1 in the second half of the training only."""
    return torch.full_like(signals.entropies, float(signals.progress >= 0.5))


later.scheduled = True


def surprisal(signals):
    return -signals.log_probs


def contrasted(signals):
    """The more likely a token is after the negative prompt, the more weight."""
    return (signals.contrast_log_probs - signals.log_probs).clamp(-2, 2).exp()


contrasted.needs = {"contrast_log_probs", "log_probs"}
contrasted.sparse = False


def negative(signals):
    return -torch.ones_like(signals.entropies)


def infinite(signals):
    return 1 / torch.zeros_like(signals.entropies)


def one_number(signals):
    return torch.tensor(1.0)


def fails_on_short_batches(signals):
    if len(signals.mask) < 3:
        raise KeyError("row 2")
    return torch.ones_like(signals.entropies)


def three_arguments(signals, pool, more):
    return signals.entropies


NOT_A_RULE = 3

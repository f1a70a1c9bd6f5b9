"""
Scores by which tokens are ranked: functions of [`Signals`] that give a tensor of shape `(batch, seq)`.

Scores outside the mask are never read.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .signals import Signals


class Score(NamedTuple):
    """
    Args:
        needs (`frozenset[str]`): Names of the signals that the function reads.
        function (`Callable`): `function(signals)`, the scores of shape `(batch, seq)`.
        derived (`bool`): Whether scores may be NaN where no signal is.
    """

    needs: frozenset[str]
    function: Callable[[Signals], torch.Tensor]
    derived: bool = False


def entropy(signals: Signals) -> torch.Tensor:
    """Token entropy in nats ("Beyond the 80/20 Rule", arXiv 2506.01939)."""
    return signals.required("entropies")


def position(signals: Signals) -> torch.Tensor:
    """Place of the token in its row, the last one highest (Temporal Scheduling, arXiv 2605.25381). Integers."""
    return signals.places


def surprisal(signals: Signals) -> torch.Tensor:
    """Surprisal of the sampled token, `-log p`, in nats."""
    return -signals.required("log_probs")


def relative_surprisal(signals: Signals) -> torch.Tensor:
    """Surprisal over entropy (RSI, arXiv 2606.31575): 1 on average; 0 where the entropy is 1e-8 nats or less."""
    entropies = signals.required("entropies")
    certain = entropies <= 1e-8
    return (-signals.required("log_probs") / entropies.masked_fill(certain, 1.0)).masked_fill(certain, 0.0)


def gradient_magnitude(signals: Signals) -> torch.Tensor:
    """`|advantage| * entropy` in nats (GMTS, arXiv 2608.30632, at the first update on a batch)."""
    size = signals.required("advantages").abs()
    return (size if size.dim() == 2 else size.unsqueeze(1)) * signals.required("entropies")


SCORES = {
    "entropy": Score(frozenset({"entropies"}), entropy),
    "position": Score(frozenset(), position),
    "surprisal": Score(frozenset({"log_probs"}), surprisal),
    "relative_surprisal": Score(frozenset({"entropies", "log_probs"}), relative_surprisal, derived=True),
    "gradient_magnitude": Score(frozenset({"entropies"}), gradient_magnitude, derived=True),
}

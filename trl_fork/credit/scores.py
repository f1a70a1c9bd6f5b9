"""
Scores by which tokens are ranked: functions of [`Signals`] that give a tensor of shape `(batch, seq)`.

Scores outside the mask are never read.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .pools import Pool, accumulator
from .signals import Signals
from .windows import share_of_window


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
    return signals.token_advantages.abs() * signals.required("entropies")


def local_entropy(signals: Signals, window: int = 101, temperature: float = 1.0) -> torch.Tensor:
    """
    Share of the token in the exponentiated entropies around it (PEPO, arXiv 2609.39402): `exp(H_t / temperature)` over
    the sum of `exp(H_k / temperature)` of the window centred at `t`, see [`~credit.windows.share_of_window`].
    """
    return share_of_window(signals.required("entropies"), signals.mask, window, temperature)


def prompt_contrast(signals: Signals) -> torch.Tensor:
    """
    `min(exp(d) - d - 1, 10)` with `d` the log-probability after the contrast prompt less the usual one, clipped to 20
    (GCPO, arXiv 2605.29198): one sample's estimate of the divergence from the policy under the contrast prompt, in
    nats. It is one-sided: `d = 2` scores 4.39, `d = -2` scores 1.14.
    """
    shift = _prompt_shift(signals).clamp(-20.0, 20.0)
    return (torch.expm1(shift) - shift).clamp(max=10.0)


def prompt_shift(signals: Signals) -> torch.Tensor:
    """`|d|` of [`prompt_contrast`] in nats: the same for tokens that the contrast prompt favours and suppresses."""
    return _prompt_shift(signals).abs()


def _prompt_shift(signals: Signals) -> torch.Tensor:
    # In float64, because exp(d) - d - 1 of a small d cancels.
    log_probs = signals.required("log_probs")
    wide = accumulator(log_probs.device)
    return signals.required("contrast_log_probs").to(wide) - log_probs.to(wide)


SCORES = {
    "entropy": Score(frozenset({"entropies"}), entropy),
    "local_entropy": Score(frozenset({"entropies"}), local_entropy, derived=True),
    "position": Score(frozenset(), position),
    "surprisal": Score(frozenset({"log_probs"}), surprisal),
    "relative_surprisal": Score(frozenset({"entropies", "log_probs"}), relative_surprisal, derived=True),
    "gradient_magnitude": Score(frozenset({"entropies"}), gradient_magnitude, derived=True),
    "prompt_contrast": Score(frozenset({"log_probs", "contrast_log_probs"}), prompt_contrast, derived=True),
    "prompt_shift": Score(frozenset({"log_probs", "contrast_log_probs"}), prompt_shift, derived=True),
}


def check_score(name: str) -> None:
    """Refuse a name that is not one of `SCORES`."""
    if not isinstance(name, str) or name not in SCORES:  # a list of a YAML file cannot be looked up
        raise ValueError(f"score must be one of {list(SCORES)}, got {name!r}.")


def checked_scores(name: str, signals: Signals, pool: Pool, **parameters) -> torch.Tensor:
    """
    The score of that name, of shape `(batch, seq)`, with parameters of its function.

    Raises:
        [`NaNSignalError`]: on every rank, if a score is NaN at a token of the mask of any rank.
    """
    score = SCORES[name]
    scores = score.function(signals, **parameters)
    if score.derived:
        pool.check(scores, signals.mask, name)
    return scores

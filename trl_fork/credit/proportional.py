"""Weights in proportion to a score, of mean 1 in each row."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .pools import Pool
from .scores import check_score, checked_scores
from .signals import Signals
from .soft import SoftRule, checked_strength, mean_one, softened, strength_in_words
from .windows import check_window


@dataclass(frozen=True)
class Proportional(SoftRule):
    """
    Weight `n * s_t / sum(s)` on the `n` tokens of each row, `s` a score: softer than a selection, with mean 1.

    With the defaults this is PEPO (arXiv 2609.39402), which weighs the rows of positive advantage only.

    Args:
        score (`str`, *optional*, defaults to `"local_entropy"`):
            A key of `SCORES`.
        window (`int`, *optional*, defaults to `101`):
            For `"local_entropy"`: tokens of the window, an odd number.
        temperature (`float`, *optional*, defaults to `1.0`):
            For `"local_entropy"`: divisor of the entropies, in nats.
        rows (`str`, *optional*, defaults to `"positive"`):
            `"positive"`: only rows of positive advantage; the tokens of others have weight 1. `"all"`: every row.
        strength (`float`, `dict` or [`Schedule`], *optional*, defaults to `1.0`):
            In [0, 1]: the weight is `1 + strength * (w - 1)`; or a schedule, see [`as_schedule`].

    Raises:
        `ValueError`: for a value out of range.
    """

    score: str = "local_entropy"
    window: int = 101
    temperature: float = 1.0
    rows: str = "positive"
    strength: Any = 1.0

    name: ClassVar[str] = "proportional"

    def __post_init__(self):
        check_score(self.score)
        check_window(self.window, self.temperature)
        if self.score != "local_entropy" and (self.window, self.temperature) != (101, 1.0):
            raise ValueError(
                f"window={self.window} and temperature={self.temperature} are parameters of the score "
                f"'local_entropy', got score={self.score!r}: leave them out."
            )
        if self.rows not in ("positive", "all"):
            raise ValueError(f"rows must be 'positive' or 'all', got {self.rows!r}.")
        object.__setattr__(self, "strength", checked_strength(self.strength))

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        which = " in completions of positive advantage" if self.rows == "positive" else ""
        return f"all tokens, weighed by {self.score.replace('_', ' ')}{which}{strength_in_words(self.strength)}"

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        settings = {"window": self.window, "temperature": self.temperature} if self.score == "local_entropy" else {}
        mask = signals.mask.bool()
        weights = mean_one(checked_scores(self.score, signals, pool, **settings), mask)
        pool.check(weights, mask, f"weight by {self.score}")  # an infinite score has no share of its row's sum
        weights = softened(weights, mask, self.strength(signals.progress))
        if self.rows == "positive":
            weights = torch.where(signals.token_advantages > 0, weights, mask.float())
        return weights

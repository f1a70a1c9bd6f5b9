"""Weight 0 on unlikely tokens that a positive advantage would reinforce although the policy was certain."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch

from .pools import Pool, check_pool_name
from .rules import PackageRule
from .schedules import is_number
from .signals import Signals


@dataclass(frozen=True)
class Spurious(PackageRule):
    """
    Weight 0 on tokens of positive advantage, with a probability below `probability` and an entropy below a quantile.

    STAPO (arXiv 2602.15620) leaves them out of numerator and denominator. Here the policy is the one that starts the
    generation batch; there it is the current one, which is the same at the first update on a batch.

    Args:
        entropy_quantile (`float`):
            In (0, 1): level of the quantile of the entropies of a pool. The paper contradicts itself: its setup says
            0.8, its ablation finds 0.2 best.
        probability (`float`, *optional*, defaults to `0.002`):
            In (0, 1].
        pool (`str`, *optional*):
            One of `POOLS`. Defaults to the pool that the chain is given.

    Raises:
        `ValueError`: for a value out of range.
    """

    entropy_quantile: float
    probability: float = 0.002
    pool: str | None = None

    name: ClassVar[str] = "spurious"
    needs: ClassVar[frozenset[str]] = frozenset({"entropies", "log_probs"})
    sparse: ClassVar[bool] = True
    mass: ClassVar[str] = "summed"

    def __post_init__(self):
        _check_share("entropy_quantile", self.entropy_quantile, one_included=False)
        _check_share("probability", self.probability, one_included=True)
        if self.pool is not None:
            check_pool_name(self.pool)

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        return (
            f"all tokens but those of positive advantage, probability below {self.probability:g} and one of the "
            f"lowest {100 * self.entropy_quantile:g} % of entropies"
        )

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        mask = signals.mask.bool()
        # As a decimal: 1 - 0.9 of floats is a little less than 0.1.
        above = pool.top(signals.required("entropies"), mask, float(1 - Fraction(str(self.entropy_quantile))))
        unlikely = signals.required("log_probs").exp() < self.probability
        return (mask & ~(unlikely & ~above & (signals.token_advantages > 0))).float()


def _check_share(name: str, value: Any, *, one_included: bool) -> None:
    if not is_number(value) or not 0 < value <= 1 or (value == 1 and not one_included):
        raise ValueError(f"{name} must be in (0, 1{']' if one_included else ')'}, got {value!r}.")

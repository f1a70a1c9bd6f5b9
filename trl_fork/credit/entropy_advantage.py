"""An advantage that grows with the entropy, as a weight."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .pools import Pool
from .rules import PackageRule
from .schedules import as_schedule, strength_in_words
from .signals import Signals


@dataclass(frozen=True)
class EntropyAdvantage(PackageRule):
    """
    Weight `1 + strength * sign(A) * min(alpha * H / |A|, 1 / kappa)`: the policy loss is linear in the size of the
    advantage, so this is the advantage `A + strength * min(alpha * H, |A| / kappa)` of "Reasoning with Exploration: An
    Entropy Perspective" (arXiv 2506.14758). A token of advantage 0 keeps it.

    It reshapes advantages, so the loss is not divided by its weights. The entropies are those of the policy that
    starts the generation batch, or with `entropy_threshold_scope="micro_batch"` of the current one, as in the paper.

    Args:
        alpha (`float`, *optional*, defaults to `0.4`):
            Advantage per nat of entropy, above 0.
        kappa (`float`, *optional*, defaults to `2.0`):
            The bonus is at most `|A| / kappa`. At least 1: below, it could turn the sign of an advantage.
        strength (`float`, `dict` or [`Schedule`], *optional*, defaults to `1.0`):
            In [0, 1]; or a schedule, see [`as_schedule`].

    Raises:
        `ValueError`: for a value out of range.
    """

    alpha: float = 0.4
    kappa: float = 2.0
    strength: Any = 1.0

    name: ClassVar[str] = "entropy_advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"entropies"})
    selects: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    mass: ClassVar[str] = "from_masks"  # of what is counted: every token as one
    counted: ClassVar[bool] = False

    def __post_init__(self):
        for name, is_right, rule, remedy in (
            ("alpha", lambda x: 0 < x < float("inf"), "a positive number", "The paper's value for GRPO is 0.4."),
            (
                "kappa",
                lambda x: 1 <= x < float("inf"),
                "a number of at least 1",
                "Below 1 the bonus could exceed the advantage and turn its sign. The paper's value is 2.0.",
            ),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not is_right(value):
                raise ValueError(f"{name} must be {rule}, got {value!r}. {remedy}")
        object.__setattr__(
            self, "strength", as_schedule(self.strength, name="strength", low=0, high=1, low_included=True)
        )

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        return f"all tokens, with an advantage that grows with the entropy{strength_in_words(self.strength)}"

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        mask, advantages = signals.mask.bool(), signals.token_advantages
        size = advantages.abs()
        bonus = self.alpha * signals.required("entropies").clamp(min=0.0) / size.masked_fill(size == 0, 1.0)
        shift = self.strength(signals.progress) * advantages.sign() * bonus.clamp(max=1 / self.kappa)
        return (1 + shift).masked_fill(~mask, 0.0)

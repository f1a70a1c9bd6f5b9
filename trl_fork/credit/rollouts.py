"""Weight 1 on some completions of each group, 0 on the others."""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar

import torch

from .pools import Pool, accumulator, pool_of
from .rules import PackageRule
from .schedules import is_number
from .selection import hash_again
from .signals import Signals


# Ways to choose, and their words
CHOICES = {"high_entropy_sum": "by high entropy sum", "low_entropy_sum": "by low entropy sum", "random": "at random"}


@dataclass(frozen=True)
class Rollouts(PackageRule):
    """
    Weight 1 on about `keep` of the completions of each group, 0 on the others, whose forward passes are left out.

    "Unified Data Selection for LLM Reasoning" (arXiv 2605.22389) keeps the completions of positive advantage with the
    largest High-Entropy Sum, and others at random. The advantages stay those of the full group. The paper does not
    say how the kept half is split: here `round(keep * G)` of `G` completions, positive and other ones in proportion,
    at least one of each kind that the group has.

    Args:
        keep (`float`, *optional*, defaults to `0.5`):
            In (0, 1]: fraction of the completions of a group.
        positives (`str`, *optional*, defaults to `"high_entropy_sum"`):
            Which completions of positive advantage stay: those of largest sum, `"low_entropy_sum"` or `"random"`.
        negatives (`str`, *optional*, defaults to `"random"`):
            The same for the others.
        top_tokens (`float`, *optional*, defaults to `0.005`):
            In (0, 1]: fraction of the tokens of a completion, those of highest entropy, that a sum takes.

    Raises:
        `ValueError`: for a value out of range.
    """

    keep: float = 0.5
    positives: str = "high_entropy_sum"
    negatives: str = "random"
    top_tokens: float = 0.005

    name: ClassVar[str] = "rollouts"
    mass: ClassVar[str] = "summed"

    def __post_init__(self):
        for name in ("keep", "top_tokens"):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value!r}: it is a fraction.")
        for name in ("positives", "negatives"):
            if getattr(self, name) not in CHOICES:
                raise ValueError(f"{name} must be one of {list(CHOICES)}, got {getattr(self, name)!r}.")

    @property
    def sparse(self) -> bool:
        """Whether some valid tokens get weight 0."""
        return self.keep < 1

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals that the rule reads."""
        choices = {self.positives, self.negatives} if self.sparse else set()
        return frozenset("priorities" if choice == "random" else "entropies" for choice in choices)

    @property
    def in_words(self) -> str:
        """The tokens with weight, as the object of a sentence."""
        positives, negatives = (CHOICES[choice] for choice in (self.positives, self.negatives))
        kinds = positives if positives == negatives else f"positive ones {positives}, others {negatives}"
        return f"{100 * self.keep:g} % of the completions of each group ({kinds})"

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor:
        mask = signals.mask.bool()
        if not self.sparse:
            return mask.float()
        ranks, rows = pool.ranks, len(mask)
        counts = ranks.gather(torch.tensor(rows, device=mask.device))
        first = int(counts[: ranks.index].sum())
        # One row of the table per completion of all ranks. Each rank fills in its own, because a group may be spread.
        table = torch.zeros(int(counts.sum()), 5, dtype=accumulator(mask.device), device=mask.device)
        own = table[first : first + rows]
        own[:, 0] = mask.any(1)
        own[:, 1] = signals.required("groups")
        own[:, 2] = (signals.token_advantages * mask > 0).any(1)
        own[:, 3] = self._order(signals, self.positives)
        own[:, 4] = self._order(signals, self.negatives)
        kept = self._kept(ranks.sum(table).tolist())
        chosen = [first + row in kept for row in range(rows)]
        return mask.float() * torch.tensor(chosen, device=mask.device).view(-1, 1)

    def _order(self, signals: Signals, choice: str) -> torch.Tensor:
        """Numbers of shape `(batch,)`, the largest of which stay."""
        mask = signals.mask.bool()
        if choice == "random":
            # Of the first token, hashed again, because a rule that draws tokens reads the same priorities.
            first = mask.int().argmax(1, keepdim=True)
            hashed = hash_again(signals.required("priorities").gather(1, first)).squeeze(1)
            return (hashed >> 11).to(accumulator(mask.device)).masked_fill(~mask.any(1), 0.0)
        entropies = signals.required("entropies").to(accumulator(mask.device)).masked_fill(~mask, 0.0)
        highest = pool_of("sequence").top(entropies, mask, self.top_tokens)
        sums = (entropies * highest).sum(1)
        return -sums if choice == "low_entropy_sum" else sums

    def _kept(self, table: list[list[float]]) -> set[int]:
        """Numbers of the completions that stay. Those without a token are of no group."""
        groups: dict[float, tuple[list[int], list[int]]] = {}
        for row, (is_there, group, is_positive, _, _) in enumerate(table):
            if is_there:
                groups.setdefault(group, ([], []))[0 if is_positive else 1].append(row)
        kept: set[int] = set()
        for positives, negatives in groups.values():
            size = len(positives) + len(negatives)
            total = max(_rounded(Fraction(str(self.keep)) * size), 1)
            share = _rounded(Fraction(total * len(positives), size))
            share = min(max(share, min(len(positives), 1)), len(positives))
            rest = min(max(total - share, min(len(negatives), 1)), len(negatives))
            for rows, column, count in ((positives, 3, share), (negatives, 4, rest)):
                kept |= set(sorted(rows, key=lambda row: (-table[row][column], row))[:count])
        return kept


def _rounded(value: Fraction) -> int:
    """The nearest whole number, the larger one of two."""
    return floor(value + Fraction(1, 2))

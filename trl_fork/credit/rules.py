"""
The protocol of a rule, a pure function from signals to non-negative weights.

Its attributes say what it needs and what work may be left out, so no other code depends on its name or formula.
"""

from typing import ClassVar, Protocol

import torch

from .pools import Pool
from .signals import Signals


MASSES = ("from_masks", "one_per_row", "summed")


class Rule(Protocol):
    """
    Attributes:
        name (`str`): Name of the rule in a configuration.
        needs (`frozenset[str]`): Names of the signals that it reads, see [`Signals`]. `mask`, `places`, `advantages`
            and `progress` are always given.
        sparse (`bool`): Whether it gives weight 0 to some tokens of the mask.
        selects (`bool`): Whether all of its weights are 0 or 1.
        mass (`str`): How the total weight is known. `"from_masks"`: it does not depend on scores.
            `"one_per_row"`: the weights of a row sum to the number of its tokens. `"summed"`: only by a sum.
        counted (`bool`): Whether the loss is divided by its weights; false if it reshapes advantages.
        pool (`str`, *optional*): Pool of its own, instead of the one that the chain is given.
        in_words (`str`): The tokens with weight, as the object of a sentence.
        trusted (`bool`): Whether its weights are non-negative by construction and need no check.

    A rule may have a method `metrics(signals, ranks)`, which gives numbers for the log by name.
    """

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def sparse(self) -> bool: ...
    @property
    def selects(self) -> bool: ...
    @property
    def mass(self) -> str: ...
    @property
    def counted(self) -> bool: ...
    @property
    def pool(self) -> str | None: ...
    @property
    def trusted(self) -> bool: ...

    @property
    def in_words(self) -> str: ...

    def __call__(self, signals: Signals, pool: Pool) -> torch.Tensor: ...
    def forking_set(self, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None: ...


class PackageRule:
    """Attributes that most rules of this package share."""

    selects: ClassVar[bool] = True
    counted: ClassVar[bool] = True
    trusted: ClassVar[bool] = True
    pool: str | None = None

    def forking_set(self, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """`None`: the rule has no threshold of entropy."""
        return None

"""
What a rule is: a pure function from signals to non-negative weights.

Its attributes say what it needs and what may be left out around it, so that no other code has to know its name or its
formula.
"""

from typing import Protocol

import torch

from .pools import Pool
from .signals import Signals


MASSES = ("from_masks", "one_per_row", "summed")


class Rule(Protocol):
    """
    Attributes:
        name (`str`): What the rule is called in a configuration.
        needs (`frozenset[str]`): Names of the signals that it reads, see [`Signals`]. `mask`, `places`, `advantages`
            and `progress` are always there.
        sparse (`bool`): Whether it gives weight 0 to some tokens of the mask.
        mass (`str`): What is known of the total weight: `"from_masks"`: it does not depend on scores.
            `"one_per_row"`: the weights of a row sum to the number of its tokens. `"summed"`: nothing.
        counted (`bool`): Whether the loss is divided by its weights. Not, if it reshapes advantages.
        pool (`str`, *optional*): Pool of its own, instead of the one that the chain is given.
        in_words (`str`): The tokens with weight, as the object of a sentence.
        trusted (`bool`): Whether its weights are non-negative by construction and need no check.
    """

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def sparse(self) -> bool: ...
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

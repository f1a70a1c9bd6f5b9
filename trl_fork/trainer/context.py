"""State of the trainer during a method of TRL, for the hooks that TRL calls inside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from .._logging import WarnsOnce


@dataclass(frozen=True)
class PolicyScores:
    """
    Result of a scoring pass, without gradient.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, prompt_length + seq)`): Tokens that were scored.
        log_probs (`torch.Tensor` of shape `(batch, seq)`): Log-probabilities of the completion tokens.
        entropies (`torch.Tensor` of shape `(batch, seq)`): Entropies of their distributions, in nats.
    """

    input_ids: torch.Tensor
    log_probs: torch.Tensor
    entropies: torch.Tensor


@dataclass
class FinalBatch:
    """
    Rows that dynamic sampling has chosen, while TRL makes its batch from them.

    Args:
        rows (`list[dict]`): Rows of this process.
        rewards (`torch.Tensor` of shape `(rows of all processes, reward functions)`): Their rewards.
        rows_given, rewards_given (`bool`): Whether TRL has taken them. It takes each once in a training batch.
    """

    rows: list[dict]
    rewards: torch.Tensor
    rows_given: bool = False
    rewards_given: bool = False


@dataclass(frozen=True)
class Context:
    """
    Values that are passed through a method of TRL to a hook inside it. Outside such a method, in a trainer built
    without `__init__` and in a mock, all of them are `None`, and every hook does what TRL's does.

    Args:
        loss_inputs (`dict`, *optional*): Inside `compute_loss`, the batch with what this trainer has added to it.
        loss_log_probs (`list[torch.Tensor]`, *optional*):
            Inside `compute_loss`, a list to which its pass adds the log-probabilities that a credit rule needs.
        old_policy_scores (`list[PolicyScores]`, *optional*):
            While a batch is made, a list to which TRL's own pass for old log-probabilities adds its scores.
        final_batch ([`FinalBatch`], *optional*): In the last round of dynamic sampling, the batch that TRL will take.
        rollout_examples (`list[dict]`, *optional*): While a batch or a round of it is made, its rows of the data set.
    """

    loss_inputs: dict | None = None
    loss_log_probs: list[torch.Tensor] | None = None
    old_policy_scores: list[PolicyScores] | None = None
    final_batch: FinalBatch | None = None
    rollout_examples: list[dict] | None = None


_NOTHING = Context()


class Resumable(Protocol):
    """A small state that a checkpoint holds."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


def context_of(trainer) -> Context:
    """Context of a trainer. It is not an attribute of the class, because a mock of the class would invent one."""
    return vars(trainer).get("_entered", _NOTHING)


class WithContext(WarnsOnce):
    """Base of the trainer's parts: the context, the states that checkpoints hold, and warnings given once."""

    @cached_property
    def _resumable(self) -> dict[str, Resumable]:
        return {}

    @contextmanager
    def _within(self, **values: Any) -> Iterator[Context]:
        before = context_of(self)
        self._entered = replace(before, **values)
        try:
            yield self._entered
        finally:
            self._entered = before

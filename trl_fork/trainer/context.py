"""What the trainer is in the middle of, for the hooks that TRL calls inside of its own methods."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class PolicyScores:
    """
    What a scoring pass has found, without gradient.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, prompt_length + seq)`): What was scored.
        log_probs (`torch.Tensor` of shape `(batch, seq)`): Log-probabilities of the completion tokens.
        entropies (`torch.Tensor` of shape `(batch, seq)`): Entropies of the distributions they are from, in nats.
    """

    input_ids: torch.Tensor
    log_probs: torch.Tensor
    entropies: torch.Tensor


@dataclass
class FinalBatch:
    """
    What dynamic sampling has chosen, while TRL makes its batch of it.

    Args:
        rows (`list[dict]`): Rows of this process.
        rewards (`torch.Tensor` of shape `(rows of all processes, reward functions)`): Their rewards.
        rows_given, rewards_given (`bool`): Whether TRL has asked for them: both, once, in a batch that is trained on.
    """

    rows: list[dict]
    rewards: torch.Tensor
    rows_given: bool = False
    rewards_given: bool = False


@dataclass(frozen=True)
class Context:
    """
    Everything that is handed through a method of TRL to a hook inside of it. Outside of such a method, in a trainer
    built without `__init__` and in a mock, all of it is `None`, and every hook does what TRL's does.

    Args:
        loss_inputs (`dict`, *optional*): Inside `compute_loss`, the batch with what this trainer has added to it.
        old_policy_scores (`list[PolicyScores]`, *optional*):
            Inside the making of a batch, where TRL's own pass for old log-probabilities leaves what it has scored.
        final_batch ([`FinalBatch`], *optional*): Inside the last round of dynamic sampling, what TRL is to take.
    """

    loss_inputs: dict | None = None
    old_policy_scores: list[PolicyScores] | None = None
    final_batch: FinalBatch | None = None


class WithContext:
    """The context of a trainer, and how to enter another one."""

    _context = Context()

    @contextmanager
    def _within(self, **values: Any) -> Iterator[Context]:
        before = self._context
        self._context = replace(before, **values)
        try:
            yield self._context
        finally:
            self._context = before

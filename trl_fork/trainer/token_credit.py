"""The credit of tokens in a run: weights of the policy term, and metrics, from the signals of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..credit import (
    Chain,
    CreditRuleError,
    NaNSignalError,
    Signals,
    credit_effect,
    normalise,
    pool_of,
    total_from_masks,
    totals,
)
from ..ranks import Ranks
from .metrics import count_metrics, entropy_metrics


# Signals that take a scoring pass.
_SCORES = frozenset({"entropies", "log_probs"})


class TokenCredit:
    """
    A chain of rules with the pool and the denominator of a run. All processes make the same calls in the same order.

    Args:
        chain ([`~credit.Chain`]): The rules.
        scope (`str`): Pool of the rules that name none of their own, `entropy_threshold_scope`.
        denominator (`str`): `loss_denominator`.
        loss_type (`str`): TRL's.
        ranks ([`~ranks.Ranks`]): The processes that take part.
    """

    def __init__(self, chain: Chain, *, scope: str, denominator: str, loss_type: str, ranks: Ranks):
        chain.check_pool(scope)
        self.chain, self.ranks = chain, ranks
        self.pool = pool_of(scope, ranks)
        # bnpo divides by the tokens of its own micro-batch, which are known at the loss.
        self._of_micro_batch = denominator == "selected" and loss_type == "bnpo"
        self._batch_denominator = "all" if self._of_micro_batch else denominator

    @property
    def pool_names(self) -> str:
        """The pools of the rules."""
        return ", ".join(dict.fromkeys(rule.pool or self.pool.name for rule in self.chain.rules))

    @property
    def at_loss_time(self) -> bool:
        """Whether the pools are micro-batches, whose weights are known only at their loss."""
        return self.pool.at_loss_time

    @property
    def needs_scores(self) -> bool:
        """Whether the weights of a generation batch need its entropies or log-probabilities."""
        return bool(self.chain.needs & _SCORES) and not self.at_loss_time

    def batch_weights(self, signals: Signals) -> torch.Tensor:
        """Normalised weights of a batch that holds whole pools, shape `(batch, seq)`."""
        credit = self.chain.apply(signals, self.pool, self.ranks)
        return normalise(credit.weights, *totals(credit, signals.mask, self.ranks), self._batch_denominator)

    def scale(self, masks: list[torch.Tensor], progress: float) -> float:
        """`N / W` of a generation batch whose pools are its micro-batches, from their masks, before any score."""
        if self._batch_denominator == "all":
            return 1.0
        total, num_valid = total_from_masks(self.chain, masks, self.pool, self.ranks, progress)
        return num_valid / (total or 1)

    def micro_batch_weights(self, signals: Signals, scale: torch.Tensor) -> torch.Tensor:
        """Weights of a micro-batch that is a pool, with the [`scale`] of its generation batch."""
        return self.chain.apply(signals, self.pool, self.ranks).weights * scale

    def loss_weights(self, weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Factors of the policy term in TRL's loss of a micro-batch, shape `(batch, seq)`."""
        if not self._of_micro_batch:
            return weights
        total = weights.sum()
        return weights * (mask.sum() / torch.where(total > 0, total, 1.0))

    def check(self, entropies: torch.Tensor, mask: torch.Tensor) -> None:
        """Raise [`~credit.NaNSignalError`] on every rank if an entropy of a valid token is NaN on any."""
        self.pool.check(entropies, mask, "entropies")

    def metrics(self, signals: Signals, weights: torch.Tensor) -> dict[str, float]:
        """Metrics of the weights of a batch, by the names of the log."""
        found = count_metrics(signals.mask, weights, signals.advantages, ranks=self.ranks)
        metrics = {f"forking/{name}": value for name, value in found.items()}
        effect = credit_effect(weights, signals.mask, signals.required("advantages"), ranks=self.ranks)
        effect |= self.chain.metrics(signals, self.ranks)
        return metrics | {f"credit/{name}": value for name, value in effect.items()}

    def entropy_metrics(self, entropies, mask, weights) -> dict[str, float]:
        """Entropies of the tokens with and without weight, by the names of the log."""
        forking = self.chain.forking_set(weights, mask)
        own = self.chain.rules[0].pool if forking is not None else None
        found = entropy_metrics(
            entropies, mask, weights, forking, pool_of(own, self.ranks) if own else self.pool, ranks=self.ranks
        )
        return {f"forking/{name}": value for name, value in found.items()}


@contextmanager
def naming_the_step(step: int) -> Iterator[None]:
    """Add the step to an error of a signal or of a user's rule, and the remedy to that of a NaN."""
    try:
        yield
    except CreditRuleError as error:
        raise CreditRuleError(f"Step {step}: {error}") from error
    except NaNSignalError as error:
        raise NaNSignalError(
            f"Step {step}: {error} The model has diverged or was loaded broken: resume from an earlier checkpoint "
            "with a lower learning_rate or max_grad_norm, and train in bf16 or fp32 rather than fp16.",
            error.signal,
        ) from error

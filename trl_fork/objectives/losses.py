"""Objectives as a trainer calls them: from what a forward pass knows of a batch to a loss and its metrics."""

from dataclasses import dataclass

import torch

from .trajectory_balance import balance_loss, balance_residual, importance_ratio, log_ratio


@dataclass(frozen=True)
class LossInputs:
    """
    What an objective sees of the completions of a forward pass. Only `log_probs` has a gradient.

    Args:
        log_probs (`torch.Tensor` of shape `(batch, seq)`): Log-probabilities of the tokens by the policy.
        ref_log_probs (`torch.Tensor` of shape `(batch, seq)`):
            Those by the reference; with mirror steps [`mirror_reference`], that of the step.
        mask (`torch.Tensor` of shape `(batch, seq)`): Nonzero at valid tokens.
        rewards (`torch.Tensor` of shape `(batch,)`): Rewards; NaN at completions that are left out.
        log_partition (`torch.Tensor` of shape `(batch,)`): Estimates of `log Z` of their prompts, in nats.
        normalizer (`torch.Tensor` of shape `()`): What the sum of the losses of the completions is divided by.
        old_log_probs (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Log-probabilities by the policy that wrote the batch; `None` while the policy is that one.
        weights (`torch.Tensor` of shape `(batch, seq)` or `(batch, 1)`, *optional*):
            Factors of the gradients of the log-probabilities; 1 by default.
        beta (`torch.Tensor` of shape `(batch,)`, *optional*):
            KL coefficients of the completions, above 0; that of the objective by default.
    """

    log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    mask: torch.Tensor
    rewards: torch.Tensor
    log_partition: torch.Tensor
    normalizer: torch.Tensor
    old_log_probs: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    beta: torch.Tensor | None = None


@dataclass(frozen=True)
class LossOutputs:
    """
    Args:
        loss (`torch.Tensor` of shape `()`): The loss.
        metrics (`dict[str, torch.Tensor]`):
            By the names of the log, one value for each completion that counts, without gradient. They are averaged; of
            a name that ends with `_max` the largest one is meant.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrajectoryBalance:
    """
    The trajectory balance loss: the mean of `w * residual ** 2` over the completions that count, those with a valid
    token and a reward.

    Weights of tokens multiply the gradients of their log-probabilities and leave the residual as it is. It is 0 at
    the target whatever the weights, so that the target stays a stationary point. Weights inside the residual would
    move the target.

    Args:
        beta (`float`): KL coefficient, above 0, of completions that bring none of their own.
        length_normalized (`bool`): Whether the log-ratio of a completion is a mean over its tokens.
        max_importance_ratio (`float`): Largest `w`, see [`importance_ratio`].
    """

    beta: float
    length_normalized: bool = True
    max_importance_ratio: float = 10.0

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        log_probs = with_weighted_gradient(inputs.log_probs, inputs.weights)
        mask = inputs.mask != 0
        counted = mask.any(-1) & ~inputs.rewards.isnan()
        # The others are left out by number: a NaN multiplied by 0 is one.
        log_probs, mask, ref, rewards, log_partition = (
            values[counted] for values in (log_probs, mask, inputs.ref_log_probs, inputs.rewards, inputs.log_partition)
        )
        ratios = log_ratio(log_probs, ref, mask, length_normalized=self.length_normalized)
        beta = self.beta if inputs.beta is None else inputs.beta[counted]
        residuals = balance_residual(ratios, rewards, log_partition, beta)
        unclipped = torch.ones_like(rewards)
        if inputs.old_log_probs is not None:
            unclipped = importance_ratio(log_probs, inputs.old_log_probs[counted], mask, maximum=float("inf"))
        losses = balance_loss(residuals, unclipped.clamp(max=self.max_importance_ratio))
        found = residuals.detach()
        metrics = {
            "residual_mean": found,
            "residual_abs": found.abs(),
            "log_partition": log_partition,
            "importance_ratio_max": unclipped.clamp(max=torch.finfo(unclipped.dtype).max),
            "clipped_fraction": (unclipped > self.max_importance_ratio).to(unclipped.dtype),
        }
        loss = losses.sum() / inputs.normalizer
        return LossOutputs(loss, {f"balance/{name}": values for name, values in metrics.items()})


def with_weighted_gradient(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """
    The same values, whose gradients are multiplied by weights.

    Args:
        values (`torch.Tensor`): Values.
        weights (`torch.Tensor` that broadcasts to their shape, *optional*): Weights; 1 by default.
    """
    if weights is None:
        return values
    fixed = values.detach()
    return fixed + weights * (values - fixed)


# By the values of `objective` in a configuration. The fields of an objective are settings of the same name. The policy
# gradient, TRL's loss, is not among them.
OBJECTIVES = {"trajectory_balance": TrajectoryBalance}

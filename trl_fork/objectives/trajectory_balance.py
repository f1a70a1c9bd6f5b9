"""
Trajectory balance: training towards a distribution in place of the largest reward.

The policy that maximises `E[r] - beta * KL(pi, pi_ref)` is `pi*(y) = pi_ref(y) exp(r(y) / beta) / Z`. For it the
residual `log Z + log(pi(y) / pi_ref(y)) - r(y) / beta` is 0 at every completion, and the loss is its square: FlowRL
(arXiv 2509.15207) with `beta` the KL coefficient of TRL, which is 1 / FlowRL's beta. Length-normalised, as in FlowRL,
the log-ratio is a mean over the tokens of a completion. The residual is then 0 for
`pi*(y) = pi_ref(y) exp(|y| (r(y) / beta - c))`, in which `c` takes the place of `log Z`.
"""

from dataclasses import dataclass
from math import log

import torch


def log_ratio(
    log_probs: torch.Tensor, ref_log_probs: torch.Tensor, mask: torch.Tensor, *, length_normalized: bool = True
) -> torch.Tensor:
    """
    Log-ratio of policy and reference of each completion, in nats: the mean over its valid tokens, or their sum.

    Args:
        log_probs, ref_log_probs (`torch.Tensor` of shape `(batch, seq)`): Log-probabilities of the tokens.
        mask (`torch.Tensor` of shape `(batch, seq)`): Nonzero at valid tokens.
        length_normalized (`bool`, *optional*, defaults to `True`): Whether to divide by the number of valid tokens.

    Returns:
        `torch.Tensor` of shape `(batch,)`; 0 for a completion without valid tokens.
    """
    mask = mask != 0
    total = (log_probs - ref_log_probs).masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if length_normalized else total


def balance_residual(
    log_ratios: torch.Tensor, rewards: torch.Tensor, log_partition: torch.Tensor, beta: float | torch.Tensor
) -> torch.Tensor:
    """
    `log_partition + log_ratio - reward / beta`: 0 at the target.

    Args:
        log_ratios (`torch.Tensor` of shape `(batch,)`): See [`log_ratio`].
        rewards (`torch.Tensor` of shape `(batch,)`): Rewards, or advantages, of the completions.
        log_partition (`torch.Tensor` of shape `(batch,)`): `log Z` of their prompts in nats, or `c` of the module.
        beta (`float` or `torch.Tensor` of shape `(batch,)`): KL coefficient, above 0.

    Returns:
        `torch.Tensor` of shape `(batch,)`: residuals in nats.
    """
    return log_partition + log_ratios - rewards / beta


def group_log_partition(
    log_ratios: torch.Tensor,
    rewards: torch.Tensor,
    beta: float | torch.Tensor,
    groups: torch.Tensor,
    counted: torch.Tensor,
) -> torch.Tensor:
    """
    The estimate of `log Z` under which the residuals of a group have mean 0 (VarGrad; TBA, arXiv 2503.18929).

    Without length normalisation it is a baseline: it changes no expected gradient. The mean of a group's rewards
    cancels, so that rewards and their distances from the mean give one loss.

    Args:
        log_ratios (`torch.Tensor` of shape `(batch,)`):
            Log-ratios by the policy that starts the generation batch, see [`log_ratio`].
        rewards (`torch.Tensor` of shape `(batch,)`): Rewards.
        beta (`float` or `torch.Tensor` of shape `(batch,)`): KL coefficient, above 0.
        groups (`torch.Tensor` of shape `(batch,)`): Number of the group of each completion.
        counted (`torch.BoolTensor` of shape `(batch,)`): Completions that are trained on; the others are left out.

    Returns:
        `torch.Tensor` of shape `(batch,)`, without gradient: the estimate of each completion's group, 0 where no
        completion of the group counts.
    """
    gaps = (rewards / beta - log_ratios).detach().masked_fill(~counted, 0.0)
    _, place = groups.unique(return_inverse=True)
    totals = gaps.new_zeros(len(groups)).index_add(0, place, gaps)
    counts = gaps.new_zeros(len(groups)).index_add(0, place, counted.to(gaps.dtype))
    return (totals / counts.clamp(min=1))[place]


def balance_loss(residuals: torch.Tensor, importance_ratios: torch.Tensor | None = None) -> torch.Tensor:
    """
    `w * residual ** 2` of each completion, with a weight `w` that has no gradient.

    Args:
        residuals (`torch.Tensor` of shape `(batch,)`): See [`balance_residual`].
        importance_ratios (`torch.Tensor` of shape `(batch,)`, *optional*):
            See [`importance_ratio`]; 1 by default, which is right while the policy is the one that wrote the batch.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    squares = residuals**2
    return squares if importance_ratios is None else importance_ratios.detach() * squares


def importance_ratio(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, mask: torch.Tensor, maximum: float = 10.0
) -> torch.Tensor:
    """
    Probability of each completion by the policy over that by the policy that wrote it, at most `maximum`.

    Args:
        log_probs, old_log_probs (`torch.Tensor` of shape `(batch, seq)`): Log-probabilities of the tokens.
        mask (`torch.Tensor` of shape `(batch, seq)`): Nonzero at valid tokens.
        maximum (`float`, *optional*, defaults to `10.0`): Largest ratio, as in verl's FlowRL.

    Returns:
        `torch.Tensor` of shape `(batch,)`, without gradient.
    """
    return (
        log_ratio(log_probs.detach(), old_log_probs.detach(), mask, length_normalized=False).exp().clamp(max=maximum)
    )


def proposal_log_partition(
    ref_log_probs: torch.Tensor,
    proposal_log_probs: torch.Tensor,
    rewards: torch.Tensor,
    beta: float,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    `log Z` of prompts from completions of a proposal model, by importance sampling.

    Without lengths this is `log mean exp(log pi_ref - log q + r / beta)`, whose exponential is an unbiased estimate of
    `Z`. For rewards of 0 and 1 and proposals from the reference it is `log(1 - p + p exp(1 / beta))`, with `p` the
    share of right completions. With lengths it is the `c` of a length-normalised loss, the root of
    `mean exp(log pi_ref - log q + |y| (r / beta - c)) = 1`.

    Args:
        ref_log_probs, proposal_log_probs (`torch.Tensor` of shape `(..., num_samples)`):
            Log-probabilities of whole completions by the reference and by the proposal model that wrote them.
        rewards (`torch.Tensor` of shape `(..., num_samples)`): Their rewards.
        beta (`float`): KL coefficient, above 0.
        lengths (`torch.Tensor` of shape `(..., num_samples)`, *optional*): Tokens of the completions, at least 1.

    Returns:
        `torch.Tensor` of shape `(...)`, float64.
    """
    log_weights, tilts, lengths = _as_doubles(ref_log_probs, proposal_log_probs, rewards, beta, lengths)

    def excess(constant: torch.Tensor) -> torch.Tensor:
        exponents = log_weights + lengths * (tilts - constant[..., None])
        return exponents.logsumexp(-1) - log(exponents.shape[-1])

    # The excess falls in the constant. At the least of these values no term is below 1, at the largest none above.
    roots = tilts + log_weights / lengths
    low, high = roots.amin(-1), roots.amax(-1)
    for _ in range(200):  # until neighbouring doubles
        middle = low + (high - low) / 2
        if bool(((middle == low) | (middle == high)).all()):
            break
        above = excess(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low + (high - low) / 2


def proposal_standard_error(
    ref_log_probs: torch.Tensor,
    proposal_log_probs: torch.Tensor,
    rewards: torch.Tensor,
    beta: float,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Standard error of [`proposal_log_partition`], with the same arguments, by the delta method.

    It is 0 where all terms are equal, as when no sample is right: it knows nothing of what was not sampled.

    Returns:
        `torch.Tensor` of shape `(...)`, float64, in nats; NaN for a single sample.
    """
    log_weights, tilts, lengths_ = _as_doubles(ref_log_probs, proposal_log_probs, rewards, beta, lengths)
    constant = proposal_log_partition(ref_log_probs, proposal_log_probs, rewards, beta, lengths)
    terms = (log_weights + lengths_ * (tilts - constant[..., None])).exp()
    if terms.shape[-1] == 1:  # `std` would warn of it
        return torch.full_like(constant, torch.nan)
    return terms.std(-1) / terms.shape[-1] ** 0.5 / (lengths_ * terms).mean(-1)


def effective_sample_size(log_weights: torch.Tensor) -> torch.Tensor:
    """
    `(sum w)^2 / sum w^2` of importance weights (Kish): `num_samples` where the proposal is the reference.

    Args:
        log_weights (`torch.Tensor` of shape `(..., num_samples)`): Their logarithms, such as `log pi_ref - log q`.

    Returns:
        `torch.Tensor` of shape `(...)`, float64, between 1 and `num_samples`.
    """
    log_weights = log_weights.double()
    # Over the largest, equal weights are 1 and their effective sample size has no rounding error.
    weights = (log_weights - log_weights.amax(-1, keepdim=True)).exp()
    return weights.sum(-1) ** 2 / (weights**2).sum(-1)


@dataclass(frozen=True)
class LogPartitionFit:
    """
    A linear prediction of `log Z` from the state of a prompt, see [`fit_log_partition`].

    Args:
        weight (`torch.Tensor` of shape `(width,)`): Slope, float64.
        mean_state (`torch.Tensor` of shape `(width,)`): State at which the prediction is `mean_value`.
        mean_value (`torch.Tensor` of shape `()`): Mean of the values it was fitted to.
    """

    weight: torch.Tensor
    mean_state: torch.Tensor
    mean_value: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Predictions of shape `(num_prompts,)` for states of shape `(num_prompts, width)`, float64."""
        return self.mean_value + (states.double() - self.mean_state) @ self.weight


def fit_log_partition(states: torch.Tensor, values: torch.Tensor, ridge: float = 1.0) -> LogPartitionFit:
    """
    Ridge regression of `log Z` on states of prompts, in closed form: it shares what few samples of each prompt say.

    It is this package's choice: DISA (arXiv 2605.17295) has a regressor whose form is not public.

    Args:
        states (`torch.Tensor` of shape `(num_prompts, width)`): States of the prompts by the frozen reference.
        values (`torch.Tensor` of shape `(num_prompts,)`): Their estimates of `log Z`.
        ridge (`float`, *optional*, defaults to `1.0`): Penalty on the squared slope, above 0. The mean has none.

    Returns:
        [`LogPartitionFit`].

    Raises:
        `ValueError`: for a penalty of at most 0, with which the fit need not be unique.
    """
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge must be a positive number, got {ridge}: it is the penalty on the squared slope.")
    states, values = states.double(), values.double()
    mean_state, mean_value = states.mean(0), values.mean()
    return LogPartitionFit(ridge_map(states - mean_state, ridge) @ (values - mean_value), mean_state, mean_value)


def ridge_map(centred: torch.Tensor, ridge: float) -> torch.Tensor:
    """
    `(X'X + ridge)^-1 X'`, which takes values to the slope of their ridge regression on `X`.

    Args:
        centred (`torch.Tensor` of shape `(num_prompts, width)`): States minus their mean, `X`, float64.
        ridge (`float`): Penalty on the squared slope, above 0.

    Returns:
        `torch.Tensor` of shape `(width, num_prompts)`.
    """
    # The smaller of two systems: X' (XX' + ridge)^-1 is the same.
    tall = len(centred) >= centred.shape[1]
    gram = centred.T @ centred if tall else centred @ centred.T
    gram.diagonal().add_(ridge)
    return torch.linalg.solve(gram, centred.T) if tall else torch.linalg.solve(gram, centred).T


def _as_doubles(ref_log_probs, proposal_log_probs, rewards, beta, lengths):
    log_weights = ref_log_probs.double() - proposal_log_probs.double()
    tilts = rewards.double() / beta
    return log_weights, tilts, torch.ones_like(tilts) if lengths is None else lengths.double()

"""
Mirror steps: trajectory balance towards a target that moves with the policy.

The policy that maximises `E[r] - tau KL(pi, rho) - KL(pi, pi_k) / eta` is one step of magnetic mirror descent
(arXiv 2206.05825) from `pi_k`, with the magnet `rho` and the step size `eta`:

    pi+ = (pi_k * exp(eta r) * rho ** (eta tau)) ** (1 / (1 + eta tau)) / Z

It is `ref(y) exp(r(y) / beta) / Z` with `ref = pi_k ** (1 / (1 + eta tau)) * rho ** (eta tau / (1 + eta tau))` and
`beta = tau + 1 / eta`, so that the residual of trajectory balance with this reference and this KL coefficient is 0 at
`pi+`. The step leaves `rho exp(r / tau) / Z` where it is, whatever `eta`.

`log ref` is linear in log-probabilities: mixed token by token, it sums to that of the completion. It is normalised
neither over tokens nor over completions, and need not be: the constant of a prompt is part of `log Z`.

With length normalisation the residual is 0 at `ref(y) exp(|y| (r(y) / beta - c))`, a step with the rewards
`|y| (r - c beta)`: the step size of a completion is `eta |y|`, its temperature `tau / |y|`. Over the steps an error of
`c` adds up to `(1 + eta tau) / (eta tau)` times what it is in one, as a bias of length. Without it, an error of
`log Z` changes no expected gradient.
"""

from typing import TypeVar

import torch


Coefficient = TypeVar("Coefficient", float, torch.Tensor)


def mirror_beta(tau: Coefficient, step_size: float) -> Coefficient:
    """
    KL coefficient of a mirror step, `tau + 1 / eta`, by which the residual divides the reward.

    Args:
        tau (`float` or `torch.Tensor` of shape `(batch,)`): KL coefficient to the magnet, above 0.
        step_size (`float`): Step size `eta` in units of one over the reward, above 0.

    Returns:
        `float` or `torch.Tensor` of shape `(batch,)`, as `tau`.
    """
    return tau + 1 / step_size


def mirror_reference(
    start_log_probs: torch.Tensor, magnet_log_probs: torch.Tensor, tau: float | torch.Tensor, step_size: float
) -> torch.Tensor:
    """
    Log-probabilities of the reference of a mirror step, `(log pi_k + eta tau log rho) / (1 + eta tau)`.

    Args:
        start_log_probs (`torch.Tensor` of shape `(batch, seq)`): Those of the tokens by the policy before the step.
        magnet_log_probs (`torch.Tensor` of shape `(batch, seq)`): Those by the magnet, the reference model.
        tau (`float` or `torch.Tensor` of shape `(batch,)`): KL coefficient to the magnet, above 0.
        step_size (`float`): Step size `eta`, above 0.

    Returns:
        `torch.Tensor` of shape `(batch, seq)`: logarithms of a measure that is not normalised, see the module.
    """
    share = tau / (tau + 1 / step_size)
    if isinstance(share, torch.Tensor):
        share = share[:, None]
    return start_log_probs + share * (magnet_log_probs - start_log_probs)

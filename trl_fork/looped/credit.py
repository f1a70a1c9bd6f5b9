"""
Weights and losses over the loops of a model: functions of tensors whose last dimension is the loop.

A token leaves after loop `t` with probability `p_t = lambda_t * prod_{j<t} (1 - lambda_j)`, where `lambda_t` is the
sigmoid of the gate's logit; what is left leaves after the last loop. Sources: "Scaling Latent Reasoning via Looped
Language Models" (https://huggingface.co/papers/2510.25741) and RLTT (https://huggingface.co/papers/2602.10520).
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


UNIFORM, PROGRESSIVE, EXIT = LOOP_CREDITS = ("uniform", "progressive", "exit")


def log_exit_distribution(gate_logits: torch.Tensor) -> torch.Tensor:
    """Logarithm of [`exit_distribution`], finite where a gate is saturated."""
    gate_logits = gate_logits.float()
    stays = logsigmoid(-gate_logits[..., :-1]).cumsum(-1)  # after loop t and all before
    first = torch.zeros_like(gate_logits[..., :1])
    leaves = torch.cat([logsigmoid(gate_logits[..., :-1]), first], dim=-1)
    return leaves + torch.cat([first, stays], dim=-1)


def exit_distribution(gate_logits: torch.Tensor) -> torch.Tensor:
    """
    Probability of leaving after each loop.

    Args:
        gate_logits (`torch.Tensor` of shape `(..., R)`):
            Logits of leaving after each loop, given that no earlier one was the last. That of the last loop is not
            read: what is left leaves there.

    Returns:
        `torch.Tensor` of shape `(..., R)`, float32: probabilities that sum to 1, with a gradient.
    """
    return log_exit_distribution(gate_logits).exp()


def loop_weights(
    credit: str, num_loops: int, *, power: float = 1.0, gate_logits: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Weights of the loops in RLTT, which sum to 1.

    Args:
        credit (`str`):
            `"uniform"`: 1 / R each. `"progressive"`: `t ** power / sum`, for `t` from 1 to R. `"exit"`: the
            [`exit_distribution`] of each token. It is not detached, so that the gate is trained too.
        num_loops (`int`): Number of loops, R.
        power (`float`, *optional*, defaults to `1.0`): Of `"progressive"`.
        gate_logits (`torch.Tensor` of shape `(..., R)`, *optional*): Of `"exit"`, which needs them.

    Returns:
        `torch.Tensor`, float32: shape `(R,)`, for `"exit"` that of `gate_logits`.

    Raises:
        `ValueError`: for an unknown credit, or `"exit"` without logits of the gate.
    """
    if credit == EXIT:
        if gate_logits is None:
            raise ValueError("credit 'exit' needs gate_logits: its weights are the gate's probabilities of leaving.")
        return exit_distribution(gate_logits)
    if credit not in LOOP_CREDITS:
        raise ValueError(f"credit must be one of {list(LOOP_CREDITS)}, got {credit!r}.")
    places = torch.arange(1, num_loops + 1, dtype=torch.float64)
    weights = places**power if credit == PROGRESSIVE else torch.ones_like(places)
    return (weights / weights.sum()).float()


def expected_depth_loss(
    losses: torch.Tensor, gate_logits: torch.Tensor, *, entropy_weight: float = 0.1
) -> torch.Tensor:
    """
    Loss of Ouro's Stage I, which trains model and gate together: `sum_t p_t L_t - entropy_weight * H(p)`.

    The bonus is, up to a constant, the KL divergence of the exits from a uniform prior over the loops.

    Args:
        losses (`torch.Tensor` of shape `(..., R)`):
            Cross-entropy of each token after each loop, in nats.
        gate_logits (`torch.Tensor` of shape `(..., R)`):
            As in [`exit_distribution`].
        entropy_weight (`float`, *optional*, defaults to `0.1`):
            Weight of the entropy of the exits. The paper is reported to go from 0.1 to 0.05.

    Returns:
        `torch.Tensor` of shape `(...)`: the loss of each token.
    """
    log_p = log_exit_distribution(gate_logits)
    p = log_p.exp()
    return (p * (losses + entropy_weight * log_p)).sum(-1)


def gate_targets(losses: torch.Tensor, *, steepness: float = 50.0, threshold: float = 0.005) -> torch.Tensor:
    """
    Targets of Ouro's Stage II, which trains the gate alone: go on where one more loop lowers the loss.

    Args:
        losses (`torch.Tensor` of shape `(..., R)`):
            Cross-entropy of each token after each loop, in nats.
        steepness, threshold (`float`, *optional*, default to `50.0` and `0.005`):
            Of `sigmoid(steepness * (improvement - threshold))`. The values are those of a reimplementation; the
            paper's were not seen.

    Returns:
        `torch.Tensor` of shape `(..., R - 1)`, without gradient: for the loops from the second on, the target of
        `1 - lambda_t`.
    """
    losses = losses.detach()
    improvement = (losses[..., :-1] - losses[..., 1:]).clamp(min=0)
    return torch.sigmoid(steepness * (improvement - threshold))


def gate_loss(gate_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of going on to the targets of [`gate_targets`], the mean over the loops from the second on.

    Args:
        gate_logits (`torch.Tensor` of shape `(..., R)`): As in [`exit_distribution`].
        targets (`torch.Tensor` of shape `(..., R - 1)`): Targets of `1 - lambda_t`.

    Returns:
        `torch.Tensor` of shape `(...)`: the loss of each token.
    """
    return binary_cross_entropy_with_logits(-gate_logits[..., 1:].float(), targets, reduction="none").mean(-1)

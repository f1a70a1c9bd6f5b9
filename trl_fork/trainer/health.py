"""Warnings of a run that is not worth continuing: the loss is NaN, or the entropy has collapsed or exploded."""

import math

import torch
from transformers import TrainerCallback

from .._logging import WarnsOnce
from .objective_checks import POLICY_GRADIENT


# Fraction of the mean entropy at the first log. Without entropy control, a run that has used 73 % of its entropy has
# 76 % of its final gain ("The Entropy Mechanism", arXiv 2505.22617): with 95 % gone, little further gain is left.
COLLAPSE = 0.05
# A multiple of the mean entropy at the first log, and nats. At 2 nats the average token has three times the entropy of
# the paper's forking threshold (0.672, section 3); STAPO (arXiv 2602.15620) saw repetitive text at that level.
EXPLOSION = (4.0, 2.0)


class HealthCallback(WarnsOnce, TrainerCallback):
    """Warn, once each, of a loss that is not a number, and of an entropy that has collapsed or exploded."""

    def __init__(self):
        self._loss_is_finite = torch.tensor(True)

    def look_at(self, loss: torch.Tensor) -> None:
        """Check a loss. Call it with every loss, as the logged one has been through `logging_nan_inf_filter`."""
        self._loss_is_finite = torch.isfinite(loss.detach()) & self._loss_is_finite.to(loss.device)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        finite = bool(self._loss_is_finite) and math.isfinite(logs.get("grad_norm") or 0.0)
        self._loss_is_finite = torch.tensor(True)
        if not finite:
            self._warn_once(
                "loss",
                f"Step {state.global_step}: the loss or its gradient is not a number. Nothing after this step is "
                "worth keeping: resume from an earlier checkpoint with a lower learning_rate or max_grad_norm, and "
                "train in bf16 or fp32 rather than fp16.",
            )
        entropy = logs.get("entropy")
        first = next((entry["entropy"] for entry in state.log_history if entry.get("entropy") is not None), None)
        if entropy is None or first is None:
            return
        clips = args.objective == POLICY_GRADIENT  # the others do not read epsilon_high
        if entropy < COLLAPSE * first:
            self._warn_once(
                "entropy",
                f"Step {state.global_step}: the entropy of the policy has collapsed, from {first:.3f} nats at the "
                f"first log to {entropy:.3f}. It samples nearly the same completions again and again, and learns "
                "little from them. Resume from an earlier checkpoint with a higher "
                f"{'epsilon_high' if clips else 'beta'} or temperature or a lower learning_rate, or with a few more "
                "prompts that it solves sometimes.",
            )
        elif entropy > max(EXPLOSION[0] * first, EXPLOSION[1]):
            self._warn_once(
                "entropy",
                f"Step {state.global_step}: the entropy of the policy has exploded, from {first:.3f} nats at the "
                f"first log to {entropy:.3f}. Look at some completions (log_completions: true): at this level they "
                "are usually noise. Resume from an earlier checkpoint with a lower learning_rate or "
                f"{'epsilon_high' if clips else 'a higher beta'}.",
            )

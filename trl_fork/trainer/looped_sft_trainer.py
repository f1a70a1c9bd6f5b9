"""Supervised training of a looped model so that every loop can be the last: Stage I of Ouro."""

import torch
import torch.nn.functional as F
from trl import SFTTrainer

from ..looped import find_looped
from ..looped.credit import exit_distribution, expected_depth_loss


class LoopedSFTTrainer(SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] with the loss of Ouro's Stage I, which trains the exit gate too.

    ```
    loss_i = sum_t p_it L_it - beta H(p_i)        L_it = -log P^(t)(y_i)
    ```

    per token `i` with a label, summed and divided by their number as TRL does: `p_it` is the probability that the gate
    leaves after loop `t`, `H` its entropy. Source: "Scaling Latent Reasoning via Looped Language Models"
    (https://huggingface.co/papers/2510.25741).

    The logits of every loop are held at once, in place of TRL's fused LM head: this is for small vocabularies or few
    tokens.

    Args:
        args, kwargs:
            Arguments of [`~trl.SFTTrainer`]. `loss_type` is not read.
        exit_entropy_coef (`float`, *optional*, defaults to `0.1`):
            beta. The paper is reported to go from 0.1 to 0.05.

    Raises:
        `ValueError`: for a model without loops, or a negative beta.
    """

    def __init__(self, *args, exit_entropy_coef: float = 0.1, **kwargs):
        if exit_entropy_coef < 0:
            raise ValueError(
                f"exit_entropy_coef must not be negative, got {exit_entropy_coef}: it would reward a gate that always "
                "leaves after the same loop. Pass 0.1, or 0 for no such term."
            )
        super().__init__(*args, **kwargs)
        self.exit_entropy_coef = exit_entropy_coef
        assert self.model is not None  # `Trainer.model` is optional to a type checker
        if find_looped(self.model) is None:
            raise ValueError(
                f"LoopedSFTTrainer needs a looped model, such as trl_fork.looped.OuroForCausalLM; got a "
                f"{type(self.model).__name__}. Use trl.SFTTrainer."
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"][:, 1:]
        outputs = model(
            **{name: value for name, value in inputs.items() if name != "labels"},
            use_cache=False,
            output_loop_states=True,
        )
        head = find_looped(model).lm_head
        kept = labels != -100
        targets = labels[kept]
        losses = torch.stack(
            [
                F.cross_entropy(head(states[:, :-1][kept]).float(), targets, reduction="none")
                for states in outputs.loop_states
            ],
            dim=-1,
        )  # (tokens, loops)
        gate_logits = outputs.gate_logits[:, :-1][kept]
        per_token = expected_depth_loss(losses, gate_logits, entropy_weight=self.exit_entropy_coef)
        num_tokens = kept.sum() if num_items_in_batch is None else num_items_in_batch
        loss = per_token.sum() / torch.as_tensor(num_tokens).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages the gradients over the processes
        self._log_loops(losses.detach(), exit_distribution(gate_logits.detach()))
        return (loss, outputs) if return_outputs else loss

    def _log_loops(self, losses: torch.Tensor, exit_probs: torch.Tensor) -> None:
        if not len(losses):
            return
        metrics = self._metrics["train" if self.model.training else "eval"]
        for number, loss in enumerate(losses.mean(0).tolist(), start=1):
            metrics[f"loops/loss_{number}"].append(loss)
        numbers = torch.arange(1, losses.shape[1] + 1, device=exit_probs.device)
        metrics["loops/expected_depth"].append((exit_probs * numbers).sum(-1).mean().item())

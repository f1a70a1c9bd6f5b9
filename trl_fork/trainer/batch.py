"""A generation batch as callbacks see it, and the columns of its tensors that are padding."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class GenerationBatch:
    """
    This process's rows of a batch to train on, before the first update on it. Do not modify them.

    Args:
        prompt_ids, prompt_mask (`torch.Tensor` of shape `(batch, prompt_length)`): Prompts, padded on the left.
        completion_ids, completion_mask (`torch.Tensor` of shape `(batch, seq)`): Completions, padded on the right.
        mask (`torch.Tensor` of shape `(batch, seq)`): Nonzero at the valid completion tokens, those in the loss.
        advantages (`torch.Tensor` of shape `(batch,)`): Advantages of the completions.
        rewards (`torch.Tensor` of shape `(batch, reward functions)`): NaN where a function could not score one.
        entropies (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Token entropies in nats by the policy that wrote the batch; `None` if no credit rule needed them.
        log_probs (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Log-probabilities of the tokens by that policy; `None` likewise.
        weights (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Factors of each token's policy term; `None` if they are not known before the first update.
        contrast_log_probs (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Log-probabilities of the tokens after the negative prompt, by the policy that wrote the batch; `None` if
            no credit rule needed them.
    """

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    rewards: torch.Tensor
    entropies: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    contrast_log_probs: torch.Tensor | None = None


@dataclass(frozen=True)
class Padding:
    """
    Side on which a tensor of a batch is padded.

    Args:
        side (`str`): `"left"` or `"right"`.
        mask (`str`): Key of the tensor that is nonzero at the columns in use.
        fill (`float`): Value at the other columns.
    """

    side: Literal["left", "right"]
    mask: str
    fill: float = 0.0


_PROMPT, _COMPLETION = Padding("left", "prompt_mask"), Padding("right", "completion_mask")
_FACTOR = Padding("right", "completion_mask", fill=1.0)

# Padding of every tensor of TRL's batches that has one column per token, and of those that this package adds. A tensor
# that is not listed is never cut, because its width may equal the completions' by chance.
LAYOUT = {
    "prompt_ids": _PROMPT,
    "prompt_mask": _PROMPT,
    "completion_ids": _COMPLETION,
    "completion_mask": _COMPLETION,
    "tool_mask": _FACTOR,
    "old_per_token_logps": _COMPLETION,
    "ref_per_token_logps": _COMPLETION,
    "sampling_per_token_logps": _COMPLETION,
    "start_per_token_logps": _COMPLETION,
    "importance_sampling_ratio": _FACTOR,  # or one column, if there is one ratio per sequence
    "advantages": _COMPLETION,  # where a subclass makes one per token
    "credit_weights": _COMPLETION,
    "credit_priorities": _COMPLETION,
}

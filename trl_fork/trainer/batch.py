"""A generation batch: what callbacks see of it, and which columns of its tensors are padding."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class GenerationBatch:
    """
    A batch to train on, before the first update on it: the rows of this process, to be read only.

    Args:
        prompt_ids, prompt_mask (`torch.Tensor` of shape `(batch, prompt_length)`): Prompts, padded on the left.
        completion_ids, completion_mask (`torch.Tensor` of shape `(batch, seq)`): Completions, padded on the right.
        mask (`torch.Tensor` of shape `(batch, seq)`): Nonzero at the valid completion tokens, which the loss is over.
        advantages (`torch.Tensor` of shape `(batch,)`): Advantages of the completions.
        rewards (`torch.Tensor` of shape `(batch, reward functions)`): NaN where a function could not score one.
        entropies (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Token entropies in nats by the policy that wrote the batch, where the credit of tokens has needed them.
        log_probs (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            Log-probabilities of the tokens by that policy, likewise.
        weights (`torch.Tensor` of shape `(batch, seq)`, *optional*):
            What the policy term of each token is multiplied by, where that is known before the first update.
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


@dataclass(frozen=True)
class Padding:
    """
    Where a tensor of a batch is padded.

    Args:
        side (`str`): `"left"` or `"right"`.
        mask (`str`): Key of the tensor that is nonzero at the columns in use.
    """

    side: Literal["left", "right"]
    mask: str


_PROMPT, _COMPLETION = Padding("left", "prompt_mask"), Padding("right", "completion_mask")

# Padding of every tensor of TRL's batches that has one column per token, and of those that this package adds. A tensor
# that is not listed is never cut: its width says nothing, as it may equal the completions' by chance.
LAYOUT = {
    "prompt_ids": _PROMPT,
    "prompt_mask": _PROMPT,
    "completion_ids": _COMPLETION,
    "completion_mask": _COMPLETION,
    "tool_mask": _COMPLETION,
    "old_per_token_logps": _COMPLETION,
    "ref_per_token_logps": _COMPLETION,
    "sampling_per_token_logps": _COMPLETION,
    "importance_sampling_ratio": _COMPLETION,  # or one column, where it is of sequences
    "advantages": _COMPLETION,  # where a subclass makes one per token
    "credit_weights": _COMPLETION,
    "credit_priorities": _COMPLETION,
}

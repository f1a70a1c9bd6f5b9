"""
Rows that begin at the first column, so that a completion is scored as if it were alone.

TRL pads prompts on the left and counts positions from the first column, padding included. With rotary positions this
changes nothing. With learned positions, attention that is scaled by the position, or a prompt-learning adapter, whose
virtual tokens come before the padding, a row's log-probabilities depend on the longest prompt beside it. A causal
model never reads padding on the right.
"""

from types import SimpleNamespace

import torch

from .lm_head import wanted_tokens_moved


class RightPadded:
    """
    A causal model with TRL's fused LM head, called with padding on both sides and run with padding on the right.

    Args:
        model (`Callable`):
            The model that TRL would call, wrapped or not.
        cut (`bool`):
            Whether to leave out columns that are padding in every row.
    """

    def __init__(self, model, *, cut: bool):
        self.model, self.cut = model, cut

    def __call__(self, input_ids, attention_mask, labels, **settings):
        width = attention_mask.shape[1]
        columns = torch.arange(width, device=attention_mask.device)
        first = attention_mask.bool().int().argmax(1, keepdim=True)  # first token of each row
        # Up to a row's last token: masked tokens in between keep their places.
        lengths = (attention_mask.bool() * (columns + 1 - first)).amax(1)
        num_columns = max(int(lengths.max()), 2) if self.cut else width
        source = ((columns + first) % width)[:, :num_columns]

        def align(values):
            return values.gather(1, source)

        with wanted_tokens_moved(align, width):
            outputs = self.model(
                input_ids=align(input_ids), attention_mask=align(attention_mask), labels=align(labels), **settings
            )
        # All aligned tokens but the first have a prediction. Virtual tokens may precede them.
        predictions = (columns - first - 1).clamp(0, num_columns - 2)
        valid = attention_mask.bool() & (columns > first)

        def restore(values):
            if values is None:
                return None
            values = values[:, 1 - num_columns :].gather(1, predictions.to(values.device))
            return values.masked_fill(~valid.to(values.device), 0)

        return SimpleNamespace(
            log_probs=restore(outputs.log_probs),
            entropy=restore(outputs.entropy),
            aux_loss=getattr(outputs, "aux_loss", None),
        )

"""
Rows one after the other, so that a forward pass has no padding at all.

The rows of a batch become one row whose positions begin again at each of them. All that is not the model's forward
pass sees TRL's batch: what the model returns is put back at the place of each token.
"""

from itertools import cycle
from math import isnan
from types import SimpleNamespace

import torch

from . import packed_attention
from .lm_head import last_wanted_columns, row_sparse_head, wanted_tokens_moved
from .packed_attention import row_keywords
from .right_padding import RightPadded


tokens_packed = 0  # tokens in all packed passes so far, by which tests see that rows were packed


class Packed:
    """
    A causal model with TRL's fused LM head, called with padding on both sides and run on packed rows.

    A row ends at the last of its tokens whose log-probability is wanted, as a causal model reads nothing after it.

    Args:
        model (`Callable`):
            The model that TRL would call, wrapped or not.
        unwrapped (`transformers.PreTrainedModel`):
            The same model, for its configuration.

    Attributes:
        layers_within_rows (`int`): Attention layers that attended within rows in the latest pass.
    """

    def __init__(self, model, unwrapped):
        self.model, self.unwrapped, self.layers_within_rows = model, unwrapped, 0

    def __call__(self, input_ids, attention_mask, labels, **settings):
        global tokens_packed
        mask, width = attention_mask.bool(), attention_mask.shape[1]
        columns = torch.arange(width, device=mask.device)
        last_wanted = last_wanted_columns(width)
        used = mask if last_wanted is None else mask & (columns <= last_wanted)
        if not bool(used.any()):  # nothing is wanted: a pass all the same, for the sake of the other processes
            used = mask & (torch.arange(len(mask), device=mask.device) == mask.sum(1).argmax())[:, None]
        counts = used.sum(1)
        # A token that is masked between others keeps its position, which packing would take from it.
        spans = (used * (columns + 1)).amax(1) - used.int().argmax(1) * used.any(1)
        lengths, spans = torch.stack([counts, spans]).tolist()
        keywords = row_keywords(self.unwrapped, [n for n in lengths if n], input_ids.device)
        if keywords is None or lengths != spans:
            return RightPadded(self.model, cut=True)(input_ids, attention_mask, labels, **settings)
        places = used.flatten().nonzero().squeeze(1)
        first = used & (columns == used.int().argmax(1, keepdim=True))
        is_first = first.flatten()[places]
        positions = columns.expand_as(used).flatten()[places]
        positions = positions - used.int().argmax(1).repeat_interleave(counts)
        tokens_packed += len(places)
        calls_before = packed_attention.calls_within_rows

        def pack(values):
            return values.flatten()[places][None]

        with wanted_tokens_moved(lambda wanted: pack(wanted) & ~is_first, width):
            outputs = self.model(
                input_ids=pack(input_ids),
                position_ids=positions[None],
                labels=pack(labels).masked_fill(is_first, -100),
                **keywords,
                **settings,
            )

        self.layers_within_rows = packed_attention.calls_within_rows - calls_before

        def unpack(values):
            if values is None:
                return None
            # The value of a token is in the column before it; that of a row's first token is 0.
            values = torch.nn.functional.pad(values[0], (1, 0))
            rows = values.new_zeros(used.numel()).index_copy(0, places.to(values.device), values)
            return rows.view(used.shape)

        return SimpleNamespace(
            log_probs=unpack(outputs.log_probs),
            entropy=unpack(outputs.entropy),
            aux_loss=getattr(outputs, "aux_loss", None),
        )


Tokens = tuple[list[int], list[int]]  # those of a prompt and of its completion


def fill_pass(rows: list[Tokens], num_tokens: int) -> list[Tokens]:
    """
    Rows for a pass of about `num_tokens`: the longest ones, again and again if need be, and the two shortest.

    Args:
        rows (`list[Tokens]`): Rows, the longest first.
        num_tokens (`int`): Tokens of the pass, exceeded by the two shortest rows at most.
    """
    filled, count = [], 0
    for prompt, completion in cycle(rows):
        count += len(prompt) + len(completion)
        if count > num_tokens:
            break
        filled.append((prompt, completion))
    return [*filled, *rows[-2:]]


def packing_effect(score, model, packed, rows: list[Tokens], pad_token_id: int, device) -> float:
    """
    Effect of packing: the difference between the scores of the last two rows alone and after the others.

    Args:
        score (`Callable`):
            `score(model, input_ids, attention_mask, completion_length)`, log-probabilities of shape
            `(batch, completion_length)`.
        model, packed (`Callable`):
            The model as it is, and the same model on packed rows.
        rows (`list[Tokens]`):
            Token ids of the prompt and of the completion of each row.
        pad_token_id (`int`):
            Token id of the padding.
        device (`torch.device`):
            Device of the batch.

    Returns:
        `float`: the larger mean absolute difference of a row's log-probabilities, in nats; rounding alone if packing
        has no effect. Infinite if it is NaN.
    """
    prompt_length, length = (max(map(len, parts)) for parts in zip(*rows, strict=True))
    ids = torch.full((len(rows), prompt_length + length), pad_token_id, device=device)
    mask, wanted = torch.zeros_like(ids), torch.zeros(len(rows), length, device=device)
    for number, (prompt, completion) in enumerate(rows):
        columns = slice(prompt_length - len(prompt), prompt_length + len(completion))
        ids[number, columns] = torch.tensor(prompt + completion, device=device)
        mask[number, columns] = 1
        # Of a row that is not compared the last token is enough for it to be there as a whole.
        wanted[number, 0 if number >= len(rows) - 2 else max(len(completion) - 1, 0) : len(completion)] = 1
    with row_sparse_head(wanted, mask[:, prompt_length:]):
        together = score(packed, ids, mask, length)
    effects = []
    for number, (prompt, completion) in list(enumerate(rows))[-2:]:
        row, valid = torch.tensor([prompt + completion], device=device), torch.ones(1, len(completion), device=device)
        with row_sparse_head(valid, valid):
            alone = score(model, row, torch.ones_like(row), len(completion))[0]
        # The first token of a row without a prompt has no prediction.
        difference = (together[number, : len(completion)] - alone)[0 if prompt else 1 :]
        effects.append(difference.abs().mean() if len(difference) else difference.new_zeros(()))
    effect = torch.stack(effects).max().item()
    return float("inf") if isnan(effect) else effect

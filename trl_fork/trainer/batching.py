"""
The same gradient from smaller batches, without unread padding and without rows that have no gradient.

These are pure functions of TRL's batch dictionaries: tensors with one column per token, padded as `batch.LAYOUT`
says; tensors and lists with one entry per row; scalars. A loss that is a sum over tokens, divided by a count that does
not depend on the micro-batch, has the same gradient for any distribution of its rows over the micro-batches of an
optimizer step.
"""

from itertools import accumulate, pairwise

import torch

from .batch import LAYOUT, Padding


def cut_padding(batch: dict, layout: dict[str, Padding] = LAYOUT) -> dict:
    """
    Cut a batch to its own longest prompt and completion.

    TRL pads every micro-batch to the longest completion of the whole generation batch. Nothing reads that padding:
    attention is masked there, and rows are scored from their first token on (`right_padding.py`).

    Args:
        batch (`dict`):
            Batch of at least one row.
        layout (`dict[str, Padding]`, *optional*):
            Padding of each tensor. Tensors that it does not name stay as they are.

    Returns:
        `dict`: the batch with views of its tensors. At least one column of each stays.
    """
    used = {
        padding: _columns_in_use(batch[padding.mask], padding.side)
        for padding in {layout[key] for key in batch.keys() & layout.keys()}
    }
    cut = dict(batch)
    for key in batch.keys() & layout.keys():
        padding = layout[key]
        if batch[key] is not None and batch[key].dim() == 2:
            cut[key] = batch[key][:, -used[padding] :] if padding.side == "left" else batch[key][:, : used[padding]]
    return cut


def _columns_in_use(mask: torch.Tensor, side: str) -> int:
    """Columns from the first token of any row, or up to the last one; at least one."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    counted = columns.flip(0) if side == "left" else columns
    return max(int((mask.bool() * counted).max()), 1) if mask.numel() else 1


def inert_rows(batch: dict, weights: torch.Tensor | None) -> torch.Tensor:
    """
    Find the rows whose policy gradient is exactly zero: no advantage, no valid token, or no selected one.

    The result has shape `(batch,)`. Every policy term of such a row is multiplied by zero, and without KL term,
    entropy bonus and auxiliary loss a row has no other term.
    """
    mask = loss_mask(batch)
    used = mask if weights is None else mask * (weights != 0)
    return without_advantage(batch["advantages"]) | ~(used != 0).any(1)


def loss_mask(batch: dict) -> torch.Tensor:
    """Tokens in TRL's loss, those of the completion that the model has written. Shape `(batch, seq)`."""
    mask = batch["completion_mask"]
    return mask if "tool_mask" not in batch else mask * batch["tool_mask"]


def without_advantage(advantages: torch.Tensor) -> torch.Tensor:
    """Rows whose advantage is zero, shape `(batch,)`. TRL takes one advantage per completion or one per token."""
    zero = advantages == 0
    return zero if zero.dim() == 1 else zero.all(1)


def lengths(batch: dict) -> torch.Tensor:
    """Prompt and completion tokens of each row, shape `(batch,)`."""
    return batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)


def read_lengths(batch: dict, weights: torch.Tensor | None) -> torch.Tensor:
    """
    Tokens of each row that a packed pass reads, shape `(batch,)`: with weights, those up to the last one with a
    gradient, and none of a row without any.
    """
    if weights is None:
        return lengths(batch)
    wanted = with_gradient(weights, batch["advantages"])
    last = (wanted * torch.arange(1, wanted.shape[1] + 1, device=wanted.device)).amax(1)
    return torch.where(last > 0, batch["prompt_mask"].sum(1) + last, 0)


def with_gradient(weights: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Tokens whose policy term is not zero, shape `(batch, seq)`."""
    return (weights != 0) & ~without_advantage(advantages).unsqueeze(1)


def plan_window(row_lengths: torch.Tensor, inert: torch.Tensor, num_batches: int, num_rows: int) -> list[list[int]]:
    """
    Distribute the rows of an optimizer step over its micro-batches: similar lengths together, inert rows left out.

    Args:
        row_lengths (`torch.Tensor` of shape `(rows,)`):
            Tokens of each row.
        inert (`torch.BoolTensor` of shape `(rows,)`):
            Rows that may be left out.
        num_batches (`int`):
            Micro-batches of the step.
        num_rows (`int`):
            Rows to keep, the same on every rank and at least the number of rows that are not inert: TRL gathers one
            metric per row, so that unequal counts would abort or hang. The shortest inert rows fill up.

    Returns:
        `list[list[int]]`: row numbers of each micro-batch, longest first; sizes differ by at most one, none is empty.
    """
    order = sorted(range(len(row_lengths)), key=lambda row: (bool(inert[row]), int(row_lengths[row])))
    kept = sorted(order[:num_rows], key=lambda row: -int(row_lengths[row]))
    sizes = [num_rows // num_batches + (i < num_rows % num_batches) for i in range(num_batches)]
    # Long rows go into the smaller micro-batches, because memory has to hold the padded size.
    sizes.reverse()
    bounds = accumulate(sizes, initial=0)
    return [kept[a:b] for a, b in pairwise(bounds)]


def take_rows(batches: list[dict], rows: list[int]) -> dict:
    """
    Make a batch of the given rows, numbered through `batches` of equal shapes.

    Tensors and lists with one entry per row are joined and indexed; scalars, the same in all batches, stay.
    """
    size = len(batches[0]["prompt_ids"])
    taken: dict = {}
    for key, value in batches[0].items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            joined = torch.cat([batch[key] for batch in batches])
            taken[key] = joined[torch.tensor(rows, device=joined.device)]
        elif isinstance(value, list) and len(value) == size:
            items = [item for batch in batches for item in batch[key]]
            taken[key] = [items[row] for row in rows]
        else:
            taken[key] = value
    return taken

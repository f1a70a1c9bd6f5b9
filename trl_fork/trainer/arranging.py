"""A generation batch, rearranged for its updates."""

import torch
from accelerate.utils import gather_object

from ..ranks import Ranks
from .balancing import Plan, blank, default_tokens, join_rows, no_rows, plan_passes, split_rows
from .batch import LAYOUT, Padding
from .batching import cut_padding, inert_rows, lengths, plan_window, read_lengths, take_rows
from .savings import Savings


def arrange(
    batches: list[dict],
    window: int,
    savings: Savings,
    weights_key: str,
    ranks: Ranks,
    layout: dict[str, Padding] = LAYOUT,
    *,
    max_tokens: int | None = None,
    equal_counts: bool = False,
) -> tuple[list[dict], int]:
    """
    Rearrange a generation batch for its updates.

    Args:
        batches (`list[dict]`):
            Micro-batches of this rank, of equal shapes.
        window (`int`):
            Micro-batches of one optimizer step; rows stay in their window.
        savings ([`Savings`]):
            Savings that are on.
        weights_key (`str`):
            Key of the selection weights, if there are any.
        ranks ([`~ranks.Ranks`]):
            The processes, all of which keep the same number of rows of a window.
        layout (`dict[str, Padding]`, *optional*):
            Padding of the batches' tensors.
        max_tokens (`int`, *optional*):
            Tokens of a packed forward pass of one process. By default those that a micro-batch would hold if it were
            padded to the longest prompt and completion of all processes.
        equal_counts (`bool`):
            Whether a metric counts rows, so that all processes must have the same number of them in a pass.

    Returns:
        `tuple[list[dict], int]`: the same number of micro-batches, and the tokens of the largest one if rows were
        packed to `max_tokens`. Rows that are packed into fewer micro-batches leave the first ones of an optimizer step
        without rows: the gradient is synchronised in the last one.
    """
    if savings.packing and savings.ordering:
        return _arrange_packed(batches, window, savings, weights_key, ranks, layout, max_tokens, equal_counts)
    arranged = []
    for start in range(0, len(batches), window):
        group = batches[start : start + window]
        if savings.ordering:
            inert = torch.cat([inert_rows(batch, batch.get(weights_key)) for batch in group])
            if not savings.inert_rows:
                inert = torch.zeros_like(inert)
            active = ranks.gather((~inert).sum()).max()
            num_rows = max(int(active), len(group))
            plan = plan_window(torch.cat([lengths(batch) for batch in group]), inert, len(group), num_rows)
            group = [take_rows(group, rows) for rows in plan]
        if savings.padding:
            group = [cut_padding(batch, layout) for batch in group]
        arranged += group
    return arranged, 0


def _arrange_packed(batches, window, savings, weights_key, ranks, layout, max_tokens, equal_counts):
    size = len(batches[0]["prompt_ids"])
    row_lengths = [read_lengths(batch, batch.get(weights_key) if savings.head_forward else None) for batch in batches]
    inert = [(inert_rows(batch, batch.get(weights_key)) & savings.inert_rows).long() for batch in batches]
    facts = ranks.gather_vectors(torch.cat([*row_lengths, *inert])).unflatten(1, (2, -1)).transpose(0, 1)
    if max_tokens is None:
        widths = [max(batch[key].sum(1).max() for batch in batches) for key in ("prompt_mask", "completion_mask")]
        widest = int(ranks.gather_vectors(torch.stack(widths)).amax(0).sum())
        max_tokens = default_tokens(size * widest, widths[0].device)
    plans = [
        plan_passes(lengths_there.tolist(), inert_there.tolist(), window, max_tokens, equal_counts=equal_counts)
        for lengths_there, inert_there in facts.split(window * size, dim=2)
    ]
    groups = [batches[i : i + window] for i in range(0, len(batches), window)]
    if ranks.count == 1:
        packed = [
            [take_rows(group, [row for _, row in rows]) for (rows,) in plan.passes]
            for plan, group in zip(plans, groups, strict=True)
        ]
    else:
        packed = _exchange(groups, plans, ranks, layout)
    arranged = []
    for group, parts in zip(groups, packed, strict=True):
        arranged += [no_rows(group[0])] * (window - len(parts)) + [cut_padding(part, layout) for part in parts]
    return arranged, max(plan.largest for plan in plans)


def _exchange(groups: list[list[dict]], plans: list[Plan], ranks: Ranks, layout) -> list[list[dict]]:
    """This process's batch of every pass. Rows without tokens make the number of rows equal, as TRL's metrics need."""
    rows = [[row for batch in group for row in split_rows(batch, layout)] for group in groups]
    sent: dict[tuple, dict] = {}
    for number, plan in enumerate(plans):
        for bins in plan.passes:
            for target, chosen in enumerate(bins):
                sent |= {
                    (number, *name): {key: _on_cpu(value) for key, value in rows[number][name[1]].items()}
                    for name in chosen
                    if name[0] == ranks.index != target
                }
    received: dict[tuple, dict] = {}
    for others in gather_object([sent]):
        received |= others
    packed: list[list[dict]] = []
    for number, (plan, group) in enumerate(zip(plans, groups, strict=True)):
        packed.append([])
        for bins in plan.passes:
            own = [
                rows[number][row] if rank == ranks.index else received[number, rank, row]
                for rank, row in bins[ranks.index]
            ]
            own += [blank(own[0], layout)] * (max(map(len, bins)) - len(own))
            packed[-1].append(join_rows(own, group[0], layout))
    return packed


def _on_cpu(value):
    # A copy: a view would travel with the whole batch.
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value

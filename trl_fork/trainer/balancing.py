"""
Rows of an optimizer step, packed to a number of tokens per forward pass and spread evenly over the processes.

Pure functions of row lengths, and of TRL's batch dictionaries. All processes compute the same plan from the same
lengths. A loss that is a sum over tokens, divided by a count that depends on neither micro-batch nor process, has the
same gradient wherever its rows are.
"""

from dataclasses import dataclass
from heapq import heapreplace

import torch

from .batch import LAYOUT, Padding
from .batching import cut_padding


# On a CPU a larger pass takes more time per token, as it leaves the caches.
_CPU_TOKENS = 1024

Row = tuple[int, int]  # process that has the row, and its number there


@dataclass(frozen=True)
class Plan:
    """
    Rows of the forward passes of an optimizer step.

    Args:
        passes (`list[list[list[Row]]]`): By forward pass and process. Every process has a row in every pass.
        largest (`int`): Tokens of the largest pass of any process.
    """

    passes: list[list[list[Row]]]
    largest: int


def default_tokens(padded: int, device: torch.device) -> int:
    """Tokens of a packed pass, where a padded micro-batch has `padded` of them: as many at most."""
    return min(padded, _CPU_TOKENS) if device.type == "cpu" else padded


def chunks_needed(tokens: int, longest: int, max_tokens: int) -> int | None:
    """
    Number of bins that surely hold `max_tokens` each if rows are [`spread`] over them; `None` if no number does.

    Args:
        tokens, longest (`int`): Tokens of all rows, and of the longest one.
        max_tokens (`int`): Tokens of a bin.
    """
    # A bin is no fuller than the average and one row more.
    return max(-(-tokens // (max_tokens - longest)), 1) if max_tokens > longest else None


def spread(lengths: list[int], num_bins: int) -> list[list[int]]:
    """
    Distribute rows over bins of similar numbers of tokens, the longest rows over the first ones.

    Args:
        lengths (`list[int]`): Tokens of each row.
        num_bins (`int`): Number of bins, at most that of rows.

    Returns:
        `list[list[int]]`: row numbers of each bin, longest first; none is empty.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [(0, 0, number) for number in range(num_bins)]  # tokens, rows, bin: an empty bin comes first
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        tokens, rows, number = loads[0]
        bins[number].append(row)
        heapreplace(loads, (tokens + lengths[row], rows + 1, number))
    return bins


def largest_bin(lengths: list[int], bins: list[list[int]]) -> int:
    """Tokens of the largest bin."""
    return max(sum(lengths[row] for row in rows) for rows in bins)


def spread_to_size(lengths: list[int], max_tokens: int, max_bins: int, multiple: int = 1) -> list[list[int]]:
    """
    [`spread`] over as few bins as hold `max_tokens` each, a multiple of `multiple`; at most `max_bins` times that.

    A row may be longer than `max_tokens`.
    """
    room = max(max_tokens, *lengths)
    number = max(min(-(-sum(lengths) // (room * multiple)), max_bins), 1)
    while True:
        bins = spread(lengths, number * multiple)
        if number >= max_bins or (number + 1) * multiple > len(lengths) or largest_bin(lengths, bins) <= room:
            return bins
        number += 1


def plan_passes(
    lengths: list[list[int]], inert: list[list[bool]], max_passes: int, max_tokens: int, *, equal_counts: bool = False
) -> Plan:
    """
    Plan the forward passes of an optimizer step on all processes.

    Args:
        lengths (`list[list[int]]`):
            Tokens of each row, by process.
        inert (`list[list[bool]]`):
            Whether a row may be left out, by process. The shortest inert rows are kept where processes would be
            without one, or where counts would differ.
        max_passes (`int`):
            Most forward passes that a process makes: the micro-batches of the step.
        max_tokens (`int`):
            Tokens of a forward pass of one process, exceeded where `max_passes` do not suffice.
        equal_counts (`bool`):
            Whether every process has the same number of rows in a pass. Tokens are then balanced less well.
    """
    num_ranks = len(lengths)
    rows = [(rank, row) for rank, own in enumerate(lengths) for row in range(len(own))]

    def length(row: Row) -> int:
        return lengths[row[0]][row[1]]

    order = sorted(rows, key=lambda row: (inert[row[0]][row[1]], length(row)))
    active = sum(not inert[rank][row] for rank, row in rows)
    # A multiple of the processes, so that each has a row in every pass: the shortest inert rows fill up.
    count = -(-max(active, 1) // num_ranks) * num_ranks
    kept = sorted(order[:count], key=lambda row: -length(row))
    sizes = [length(row) for row in kept]
    if equal_counts and num_ranks > 1:
        passes = _with_equal_counts(sizes, num_ranks, max_passes, max_tokens)
    else:
        bins = spread_to_size(sizes, max_tokens, max_passes, num_ranks)
        passes = [bins[i : i + num_ranks] for i in range(0, len(bins), num_ranks)]
    named = [_assign_processes([[kept[i] for i in rows] for rows in bins], length) for bins in passes]
    return Plan(named, max(sum(map(length, rows)) for bins in named for rows in bins))


def _with_equal_counts(sizes: list[int], num_ranks: int, max_passes: int, max_tokens: int) -> list[list[list[int]]]:
    """Rows, longest first, dealt to the processes in turns, and cut into passes at the same places everywhere."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for start in range(0, len(sizes), num_ranks):
        ranks = sorted(range(num_ranks), key=loads.__getitem__)
        for place, rank in enumerate(ranks):  # the longest of these rows goes where there is least so far
            shares[rank].append(start + place)
            loads[rank] += sizes[start + place]

    def cut(room: int) -> list[tuple[int, int]]:
        cuts, first, totals = [], 0, [0] * num_ranks
        for turn in range(len(shares[0])):
            added = [sizes[share[turn]] for share in shares]
            if turn > first and max(map(sum, zip(totals, added, strict=True))) > room:
                cuts.append((first, turn))
                first, totals = turn, [0] * num_ranks
            totals = [total + more for total, more in zip(totals, added, strict=True)]
        return [*cuts, (first, len(shares[0]))]

    number = min(len(cut(max_tokens)), max_passes)
    low, high = 1, sum(sizes)
    while low < high:  # the least room that makes as few passes: then they are of similar size
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= number else (middle + 1, high)
    return [[share[a:b] for share in shares] for a, b in cut(low)]


def _assign_processes(bins: list[list[Row]], length) -> list[list[Row]]:
    """One bin for each process, so that few tokens have to move."""
    free, placed = list(range(len(bins))), {}
    for rows in sorted(bins, key=lambda rows: -sum(map(length, rows))):
        at_home = {rank: sum(length(row) for row in rows if row[0] == rank) for rank in free}
        rank = max(free, key=lambda rank: at_home[rank])
        free.remove(rank)
        placed[rank] = rows
    return [placed[rank] for rank in range(len(bins))]


def split_rows(batch: dict, layout: dict[str, Padding] = LAYOUT) -> list[dict]:
    """
    Each row of a batch by itself, cut to its own length.

    Tensors and lists with one entry per row are in it; what is not, the same for all rows, is left out.
    """
    size = len(batch["prompt_ids"])
    rows = []
    for row in range(size):
        own = {
            key: value[row : row + 1]
            for key, value in batch.items()
            if (isinstance(value, torch.Tensor) and value.dim() > 0)
            or (isinstance(value, list) and len(value) == size)
        }
        rows.append({key: value[0] for key, value in cut_padding(own, layout).items()})
    return rows


def blank(row: dict, layout: dict[str, Padding] = LAYOUT) -> dict:
    """A row without any token and without advantage, of the kind of another one."""
    empty = {}
    for key, value in row.items():
        if not isinstance(value, torch.Tensor):
            empty[key] = value
        elif key in layout and value.dim() == 1:
            empty[key] = torch.full_like(value[:1], layout[key].fill)
        else:
            empty[key] = torch.zeros_like(value)
    for mask in {padding.mask for padding in layout.values()} & row.keys():
        empty[mask] = torch.zeros_like(empty[mask])
    return empty


def join_rows(rows: list[dict], batch: dict, layout: dict[str, Padding] = LAYOUT) -> dict:
    """
    A batch of rows, padded as `layout` says.

    Args:
        rows (`list[dict]`): Rows as [`split_rows`] makes them; at least one.
        batch (`dict`): The batch whose other entries the new one gets.
        layout (`dict[str, Padding]`, *optional*): Padding of its tensors.

    Raises:
        `ValueError`: for rows of several shapes whose padding `layout` does not say.
    """
    joined = dict(batch)
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if not isinstance(value, torch.Tensor):
            joined[key] = values
            continue
        if key in layout and value.dim() == 1:
            columns, padding = max(map(len, values)), layout[key]

            def padded(tensor, columns=columns, padding=padding):
                missing = columns - len(tensor)
                sides = (missing, 0) if padding.side == "left" else (0, missing)
                return torch.nn.functional.pad(tensor, sides, value=padding.fill)

            values = [padded(tensor) for tensor in values]
        if len({tensor.shape for tensor in values}) > 1:
            shapes = sorted({tuple(tensor.shape) for tensor in values})
            raise ValueError(
                f"The batch has a tensor {key!r} whose rows differ in shape between processes, {shapes[0]} and "
                f"{shapes[-1]}, and batch_layout does not say how it is padded. Name it in batch_layout of the "
                "trainer's class, or set padding_free=False, with which rows stay on their process."
            )
        joined[key] = torch.stack([tensor.to(batch[key].device) for tensor in values])
    return joined


def no_rows(batch: dict) -> dict:
    """A batch of the same entries without any row, which does not keep the rows of the other in memory."""
    size = len(batch["prompt_ids"])
    empty = dict(batch)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            empty[key] = value[:0].clone()
        elif isinstance(value, list) and len(value) == size:
            empty[key] = []
    return empty

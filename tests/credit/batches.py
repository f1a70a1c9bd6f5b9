"""A batch of signals in which no two numbers are equal."""

from dataclasses import fields, replace

import torch

from tests.conftest import build_tokenizer
from trl_fork.credit import Signals, random_priorities


TOKENIZER = build_tokenizer()


def batch_of_signals(rows=32, columns=24, seed=0) -> Signals:
    """Rows of different lengths with holes, as tool output makes them; the fourth row has no valid token."""
    generator = torch.Generator().manual_seed(seed)

    def distinct(scale):
        return (torch.randperm(rows * columns, generator=generator).float().view(rows, columns) + 0.5) / scale

    lengths = torch.randint(1, columns + 1, (rows,), generator=generator)
    lengths[3] = 0
    mask = torch.arange(columns) < lengths[:, None]
    mask &= torch.rand(rows, columns, generator=generator) > 0.1
    mask[1, 0] = mask[1, 2] = True
    advantages = (torch.arange(rows).float() - rows / 3 + 0.1) / rows
    return Signals(
        mask=mask.long(),
        entropies=distinct(97.0),
        log_probs=-distinct(89.0),
        contrast_log_probs=-distinct(83.0),
        completion_ids=torch.randint(0, 40, (rows, columns), generator=generator),
        priorities=random_priorities(seed, (0, 5, 0), 0, (rows, columns)),
        advantages=advantages[torch.randperm(rows, generator=generator)],
        groups=torch.arange(rows) // 8,
        progress=0.3,
        tokenizer=TOKENIZER,
    )


def map_signals(function, signals: Signals) -> Signals:
    """The signals with `function(name, tensor)` in place of every tensor."""
    tensors = {f.name: getattr(signals, f.name) for f in fields(signals)}
    return replace(signals, **{n: function(n, t) for n, t in tensors.items() if isinstance(t, torch.Tensor)})


def rows_of(signals: Signals, rows: slice) -> Signals:
    return map_signals(lambda name, tensor: tensor[rows], signals)


def padded(signals: Signals, rows: int, columns: int, garbage: float = float("nan")) -> Signals:
    """The signals with so many more rows and columns of padding, and garbage wherever the mask is 0."""

    def pad(name, tensor):
        value = garbage if tensor.is_floating_point() else 2**40
        if tensor.dim() == 1:
            return torch.nn.functional.pad(tensor, (0, rows), value=value)
        if name == "mask":
            return torch.nn.functional.pad(tensor, (0, columns, 0, rows))
        unread = signals.mask == 0
        if name == "completion_ids":  # the text of a completion includes what a tool has written
            unread = signals.mask.flip(1).cumsum(1).flip(1) == 0
        tensor = tensor.masked_fill(unread, value)
        return torch.nn.functional.pad(tensor, (0, columns, 0, rows), value=value)

    return map_signals(pad, signals)

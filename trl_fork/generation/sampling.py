"""Draws of tokens from given uniform random numbers."""

import torch


_BLOCK = 256  # scores whose probabilities are summed first


def draw_tokens(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """
    Sample one token per row, by inverting its distribution function.

    A row's token depends on its own scores and number alone. `torch.multinomial` needs a random number for every
    score, and draws them for all rows from one stream; this needs one number per row.

    Args:
        scores (`torch.Tensor` of shape `(batch, vocabulary)`):
            Logits, `-inf` for tokens that are left out. At least one of a row is finite.
        uniforms (`torch.Tensor` of shape `(batch,)`):
            Numbers in [0, 1), float64.

    Returns:
        `torch.LongTensor` of shape `(batch,)`: token ids. A token of probability 0 is never drawn.

    Raises:
        `ValueError`: for a row with NaN or infinity, or without any finite score.
    """
    device = scores.device
    if device.type == "mps":  # has no float64
        scores, uniforms = scores.cpu(), uniforms.cpu()
    scores = scores.float()
    masses = (scores - scores.amax(-1, keepdim=True)).exp()
    if missing := -masses.shape[1] % _BLOCK:
        masses = torch.nn.functional.pad(masses, (0, missing))
    masses = masses.view(len(masses), -1, _BLOCK)
    # In float64 rounding does not let a token of probability 0 through. Sums of blocks are quicker than running sums.
    blocks = masses.sum(-1, dtype=torch.float64).cumsum(-1)
    total = blocks[:, -1:]
    if not bool(total.isfinite().all()):
        raise ValueError(
            "The scores of a token to generate are NaN or infinite: the weights of the model are, or a number "
            "overflows in its precision. Look at the latest grad_norm and loss, and lower learning_rate or set "
            "max_grad_norm; with fp16, use bf16."
        )
    target = _below(uniforms.to(total).unsqueeze(-1) * total, total)
    block = torch.searchsorted(blocks, target, right=True)
    within = masses.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).squeeze(1).double().cumsum(-1)
    before = torch.nn.functional.pad(blocks, (1, 0)).gather(1, block)
    place = torch.searchsorted(within, _below(target - before, within[:, -1:]), right=True)
    return (block * _BLOCK + place).squeeze(-1).to(device)


def _below(target: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """`target`, but less than `total`, which rounding may make it reach."""
    return target.minimum(total.nextafter(torch.zeros_like(total)))

"""How much of the gradient of all tokens sits in which of them."""

import torch

from trl_fork import select_tokens


FRACTION = 0.2


def gradient_shares(model, batches: list[dict[str, torch.Tensor]], seed: int) -> dict[str, float]:
    """
    The policy gradient of all tokens, taken apart.

    ```
    g(S) = -1 / N * sum_{t in S} A_t grad log pi(o_t),    g(all) = g(top 20 %) + g(bottom 80 %)
    ```

    That is the objective's gradient where the policy is the one that sampled, whatever the clipping, with the
    denominator of all `N` tokens for every set `S`, so that the parts add up.

    Args:
        model ([`~transformers.PreTrainedModel`]): The policy.
        batches (`list[dict]`): Two batches of rollouts, of the same kind but independent of each other.
        seed (`int`): Seed of the random 20 %.

    Returns:
        `dict[str, float]`: for each set, averaged over the two batches: `norm/SET`, its norm as a fraction of
        `norm/all`, which is in absolute numbers; `cosine/SET`, with the gradient of all tokens of the same batch; and
        `agreement/SET`, its cosine with the gradient of all tokens of the *other* batch, which noise cannot raise.
        Empty if a batch has no gradient: every group has one reward.
    """
    parts = [_parts(model, batch, seed + number) for number, batch in enumerate(batches)]
    if any(part["all"].norm() == 0 for part in parts):
        return {}
    shares: dict[str, list[float]] = {}
    for own, other in (parts, parts[::-1]):
        full, other_full = own["all"], other["all"]
        for name, gradient in own.items():
            norm = full.norm() if name == "all" else gradient.norm() / full.norm()
            shares.setdefault(f"norm/{name}", []).append(norm.item())
            shares.setdefault(f"cosine/{name}", []).append(_cosine(gradient, full))
            shares.setdefault(f"agreement/{name}", []).append(_cosine(gradient, other_full))
    return {name: sum(values) / len(values) for name, values in shares.items()}


def _parts(model, batch: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    mask = batch["mask"]
    generator = torch.Generator().manual_seed(seed)
    priorities = torch.rand(mask.shape, generator=generator).to(mask.device)
    top = select_tokens(batch["entropies"], mask, FRACTION)
    drawn = select_tokens(batch["entropies"], mask, FRACTION, rule="random", priorities=priorities)
    top, bottom, drawn = (_gradient(model, batch, selected) for selected in (top, mask & ~top, drawn))
    return {"all": top + bottom, "top20": top, "random20": drawn, "bottom80": bottom}


def _gradient(model, batch: dict[str, torch.Tensor], selected: torch.Tensor) -> torch.Tensor:
    """Flat gradient of the policy loss on the selected tokens."""
    ids, attention, length = batch["input_ids"], batch["attention_mask"], selected.shape[1]
    model.zero_grad()
    # Half a hundred rows at a time; a completion without an advantage has no gradient.
    rows = (batch["advantages"] != 0).nonzero().flatten()
    with torch.enable_grad():
        for chunk in rows.split(64) if len(rows) else ():
            positions = (attention[chunk].cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids[chunk], attention_mask=attention[chunk], position_ids=positions).logits
            logps = logits[:, -length - 1 : -1].float().log_softmax(-1)
            logps = logps.gather(-1, ids[chunk, -length:, None]).squeeze(-1)
            loss = -(logps * batch["advantages"][chunk, None] * selected[chunk]).sum() / batch["mask"].sum()
            loss.backward()
    gradient = torch.cat(
        [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()]
    )
    model.zero_grad()
    return gradient


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(first, second, dim=0).item()

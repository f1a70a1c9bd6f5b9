"""Token entropy, in nats: the uncertainty of the next-token distribution at each position (paper, Eq. 1)."""

import torch


# Logits converted to float32 at a time. 2**24 of them take 64 MiB; all of a 150k-word vocabulary at once would take
# more memory than the model.
_CHUNK_LOGITS = 2**24


def rows_per_chunk(vocabulary_size: int) -> int:
    """Number of positions to convert to float32 at a time."""
    return max(1, _CHUNK_LOGITS // max(1, vocabulary_size))


@torch.no_grad()
def token_entropy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """
    Entropy of `softmax(logits / temperature)` at each position.

    ```
    H = -sum_v p_v log p_v,    p = softmax(z / T)        (paper section 2.1, Eq. 1)
    ```

    A logit of `-inf` is a token that cannot occur and contributes nothing (`0 log 0 = 0`). No gradient flows.

    Args:
        logits (`torch.Tensor` of shape `(..., vocabulary)`):
            Unscaled logits, of any floating-point dtype.
        temperature (`float`, *optional*, defaults to `1.0`):
            Decoding temperature; must be positive.

    Returns:
        `torch.Tensor` of shape `(...)`: float32, in nats, between 0 and `log(vocabulary)`. NaN where the logits hold a
        NaN or `+inf`, or only `-inf`, which is not a distribution.

    Example:
        ```python
        >>> import torch
        >>> from trl_fork import token_entropy
        >>> token_entropy(torch.tensor([[0.0, 0.0], [0.0, float("-inf")]]))
        tensor([0.6931, 0.0000])
        ```
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}: at 0 every distribution is one-hot.")
    flat = logits.reshape(-1, logits.shape[-1])
    entropies = torch.empty(flat.shape[0], dtype=torch.float32, device=logits.device)
    rows = rows_per_chunk(flat.shape[-1])
    for start in range(0, flat.shape[0], rows):
        log_probs = (flat[start : start + rows].float() / temperature).log_softmax(-1)
        # Clamping makes the product 0 * lowest = 0 where it would be 0 * -inf = NaN, and leaves NaN a NaN.
        products = log_probs.exp() * log_probs.clamp(min=torch.finfo(torch.float32).min)
        entropies[start : start + rows] = -products.sum(-1)
    return entropies.view(logits.shape[:-1]).abs()  # abs: -0.0 of a one-hot distribution


@torch.no_grad()
def completion_entropies(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    temperature: float = 1.0,
) -> torch.Tensor:
    """
    Entropy of the distribution from which each completion token was drawn.

    The entropy that belongs to a token is that of the position before it, which predicts it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model. Its training mode is left as it is: call `model.eval()` first, or dropout will
            change the entropies.
        input_ids, attention_mask (`torch.Tensor` of shape `(batch, seq)`):
            Prompts, padded on the left, and completions, padded on the right.
        completion_length (`int`):
            Number of completion positions at the end; at least one prompt token must precede them.
        temperature (`float`, *optional*, defaults to `1.0`):
            Decoding temperature; must be positive.

    Returns:
        `torch.Tensor` of shape `(batch, completion_length)`: float32, in nats. Values at padding are meaningless.
    """
    if not 0 < completion_length < input_ids.shape[1]:
        raise ValueError(
            f"completion_length must be in [1, {input_ids.shape[1] - 1}], got {completion_length}: the first "
            "completion token is predicted at the position before it."
        )
    # Explicit positions: models count padding on the left as positions otherwise.
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids).logits
    return token_entropy(logits[:, -completion_length - 1 : -1], temperature)

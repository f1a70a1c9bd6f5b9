"""
Causal attention within each of several rows that are concatenated, without a mask.

transformers keeps the rows of a packed batch apart by a mask of the whole length squared where attention is PyTorch's
own (`sdpa`). This attention function, registered through transformers' public interface, splits the rows instead. It
is in place for the time of a pass only, and is `sdpa` wherever no row lengths are given.
"""

import inspect
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


try:
    from torch.nn.attention.varlen import varlen_attn

    _HAS_KERNEL = True
    # PyTorch 2.11 asks for as many heads of keys and values as of queries.
    _KERNEL_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
except ImportError:
    _HAS_KERNEL = _KERNEL_TAKES_GROUPS = False

NAME = "trl_fork_packed_sdpa"
calls_within_rows = 0  # calls of attention layers that knew where rows begin, over all passes so far
calls_of_kernel = 0  # those that were one call of PyTorch's attention of variable length, on CUDA
# Layers whose output depends on tokens through attention alone, by the mask that transformers gives them.
_LAYERS = {"full_attention", "sliding_attention"}


def attend_within_rows(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, sliding_window=None, **keywords
):
    """
    An attention function of transformers: `sdpa`, unless `cu_seq_lens_q` says where rows begin.

    Args:
        module (`torch.nn.Module`):
            The attention layer.
        query, key, value (`torch.Tensor` of shape `(1, heads, tokens, head_dim)`):
            Rows one after the other. Several query heads may share one of the others.
        attention_mask (`torch.Tensor`, *optional*):
            Where rows are given, the placeholder of [`row_keywords`]: a model that puts more into it is refused.
        dropout, scaling (`float`, *optional*):
            Of the attention probabilities, and of the scores.
        sliding_window (`int`, *optional*):
            Tokens that a token attends to, itself included.
        keywords:
            transformers' `FlashAttentionKwargs`, and what else a model passes.

    Raises:
        `NotImplementedError`: for a position bias, a soft cap or sinks of a packed batch, and for what a model puts
            into its mask alone: a sliding window, or tokens that it leaves out.
    """
    global calls_within_rows, calls_of_kernel
    starts = keywords.get("cu_seq_lens_q")
    if starts is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **keywords
        )
    for name in ("position_bias", "softcap", "s_aux"):
        if keywords.get(name) is not None:
            raise NotImplementedError(f"packed rows with {name}")
    if attention_mask is not None and attention_mask.numel() > 1:
        raise NotImplementedError("packed rows with a mask that the model changes")
    if sliding_window is None and _slides(module):
        raise NotImplementedError("packed rows with a sliding window that is in the mask alone")
    calls_within_rows += 1
    if query.is_cuda and _HAS_KERNEL and not dropout:
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
        if query.dtype in (torch.float16, torch.bfloat16):
            calls_of_kernel += 1
            longest = keywords["max_length_q"]
            if not _KERNEL_TAKES_GROUPS:
                key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
            query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
            groups: dict[str, Any] = {"enable_gqa": True} if _KERNEL_TAKES_GROUPS else {}
            output = varlen_attn(
                query,
                key,
                value,
                starts,
                starts,
                longest,
                longest,
                scale=scaling,
                window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
                **groups,
            )
            return output.unsqueeze(0), None
    # Neighbours of one length are a batch.
    batches = [(length, len(list(rows))) for length, rows in groupby(starts.diff().tolist())]
    sizes = [length * count for length, count in batches]
    outputs = []
    for (length, count), *parts in zip(batches, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True):
        queries, keys, values = (part[0].unflatten(1, (count, length)).transpose(0, 1) for part in parts)
        output = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=_window(length, sliding_window, query.device),
            dropout_p=dropout,
            scale=scaling,
            is_causal=sliding_window is None or length <= sliding_window,
            enable_gqa=True,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def _slides(module) -> bool:
    """Whether the configuration gives a layer a sliding window."""
    config = getattr(module, "config", None)
    if getattr(config, "sliding_window", None) is None:
        return False
    kinds, number = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    return kinds is None or (number is not None and kinds[number] == "sliding_attention")


def _window(length: int, sliding_window: int | None, device) -> torch.Tensor | None:
    if sliding_window is None or length <= sliding_window:
        return None
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < sliding_window)


AttentionInterface.register(NAME, attend_within_rows)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for a batch without row lengths


@contextmanager
def packed_attention(model):
    """Within this context a model whose attention is `sdpa` takes the keywords of [`row_keywords`]."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def row_keywords(model, lengths: list[int], device) -> dict | None:
    """
    Arguments of a model's forward pass that keep packed rows apart, beside `position_ids`.

    Args:
        model (`transformers.PreTrainedModel`): The model, not wrapped.
        lengths (`list[int]`): Tokens of each row, at least 1.
        device (`torch.device`): Device of the batch.

    Returns:
        `dict`: the arguments; `None` if attention would go from one row to the next.
    """
    implementation = model.config.get_text_config()._attn_implementation or ""
    if implementation == "flex_attention":
        return {"attention_mask": None}  # transformers makes a block mask from the positions
    flash = "flash" in implementation
    if not flash and implementation != NAME:
        return None
    starts = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    longest = max(lengths)
    # A mask of four dimensions is taken as it is: none of the length squared is built.
    mask = None if flash else torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return {
        "attention_mask": mask,
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def find_other_layers(model, layers_within_rows: int) -> str | None:
    """
    Why rows mix if too few attention layers knew where they begin in a packed pass; `None` if enough did.

    Args:
        model (`transformers.PreTrainedModel`): The model, not wrapped, in [`packed_attention`].
        layers_within_rows (`int`): Layers that knew it.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != NAME or layers_within_rows >= config.num_hidden_layers:
        return None
    return f"{layers_within_rows} of its {config.num_hidden_layers} layers attend within rows"


def find_obstacle(model) -> str | None:
    """Why the rows of a model cannot be packed, as far as its description says; `None` if it does not say so."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    implementation = config._attn_implementation or "eager"
    layers = {kind for kind in getattr(config, "layer_types", None) or () if kind not in _LAYERS}
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "the adapter puts virtual tokens before each row"
    if getattr(base, "_is_stateful", False) or layers:
        return f"{type(base).__name__} has layers that carry a state from token to token"
    if implementation not in ("sdpa", "flex_attention") and "flash" not in implementation:
        return f"attn_implementation={implementation!r} would compute attention between all packed tokens"
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        return f"{type(base).__name__} takes no position_ids"
    return None

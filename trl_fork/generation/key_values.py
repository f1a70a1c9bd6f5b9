"""The cache of keys and values of a batch whose rows leave it as they end."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """
    A layer of the cache with room for tokens to come, from which rows can be taken out in place.

    transformers' own layer copies all keys and values for each new token, and for each row that leaves.

    Args:
        layer ([`~transformers.cache_utils.DynamicLayer`]): The layer after the prompts, one row per prompt.
        rows (`torch.LongTensor` of shape `(batch,)`): Prompt of each row of the batch.
        longest (`int`): Tokens of a row at most.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, layer: Any, rows: torch.Tensor, longest: int):
        super().__init__()
        self.dtype, self.device, self.longest = layer.keys.dtype, layer.keys.device, longest
        self.is_initialized = True
        self._store: list[torch.Tensor] = [torch.empty(0), torch.empty(0)]
        self.keys, self.values = (
            self._grown(number, held[rows]) for number, held in enumerate((layer.keys, layer.values))
        )

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append the states of new tokens, each of shape `(batch, heads, new tokens, head dimension)`."""
        self.keys = self._append(0, self.keys, key_states)
        self.values = self._append(1, self.values, value_states)
        return self.keys, self.values

    def _append(self, number: int, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        start, end = held.shape[2], held.shape[2] + new.shape[2]
        if end > self._store[number].shape[2]:
            self._grown(number, held, end)
        store = self._store[number][: len(held)]
        store[:, :, start:end] = new
        return store[:, :, :end]

    def _grown(self, number: int, held: torch.Tensor, needed: int = 0) -> torch.Tensor:
        """Copy what is held to where an eighth more tokens fit: a few copies in all, and little memory unused."""
        rows, heads, length, size = held.shape
        needed = max(needed, length)
        room = max(needed, min(needed + max(needed // 8, 16), self.longest))
        self._store[number] = held.new_empty(rows, heads, room, size)
        self._store[number][:, :, :length] = held
        return self._store[number][:, :, :length]

    def move_rows(self, sources: torch.Tensor, targets: torch.Tensor, num_rows: int) -> None:
        """Copy rows over others, and keep the first `num_rows`."""
        for held in (self.keys, self.values):
            held[targets] = held[sources]
        self.keys, self.values = self.keys[:num_rows], self.values[:num_rows]


def with_rows(cache: Cache, rows: torch.Tensor, longest: int) -> Cache:
    """
    Give every row of a batch the cache of its prompt, changing `cache`.

    Args:
        cache ([`~transformers.Cache`]): Cache after the prompts, one row per prompt.
        rows (`torch.LongTensor` of shape `(batch,)`): Prompt of each row of the batch.
        longest (`int`): Tokens of a row at most.
    """
    layer: Any
    for number, layer in enumerate(cache.layers):
        if not getattr(layer, "is_initialized", True):  # shares the states of another layer
            continue
        if type(layer) is DynamicLayer:
            cache.layers[number] = GrowingLayer(layer, rows, longest)
        else:
            layer.reorder_cache(rows)
    return cache


def move_rows(cache: Cache, sources: torch.Tensor, targets: torch.Tensor, num_rows: int) -> None:
    """Copy rows of a cache over others, and keep the first `num_rows`, as in a tensor of the batch."""
    kept = torch.arange(num_rows, device=sources.device)
    kept[targets] = sources
    layer: Any
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.move_rows(sources, targets, num_rows)
        elif getattr(layer, "is_initialized", True):
            layer.reorder_cache(kept)

"""The least that decoding costs: one forward pass for each token of the longest completion, over rows still alive."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from trl_fork._transformers import CACHE


class PrefixLayer(CacheLayerMixin):
    """
    Keys and values in memory that is allocated once, for rows of which the last ones end first.

    Args:
        keys, values (`torch.Tensor` of shape `(rows, heads, prompt_length, head_dim)`): Those of the prompts.
        length (`int`): Positions of the longest row, its prompt included.
    """

    is_sliding = False

    def __init__(self, keys, values, length):
        super().__init__()
        self.seen = self.prompt_length = keys.shape[2]
        self.keys = keys.new_empty(*keys.shape[:2], length, keys.shape[3])
        self.values = torch.empty_like(self.keys)
        self.keys[:, :, : self.seen], self.values[:, :, : self.seen] = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states):
        pass

    def update(self, key_states, value_states, *args, **kwargs):
        rows, start = len(key_states), self.seen
        self.seen += key_states.shape[2]
        self.keys[:rows, :, start : self.seen] = key_states
        self.values[:rows, :, start : self.seen] = value_states
        return self.keys[:rows, :, : self.seen], self.values[:rows, :, : self.seen]

    def get_mask_sizes(self, query_length):
        return self.seen + query_length, 0

    def get_seq_length(self):
        return self.seen

    def get_max_length(self):
        return self.keys.shape[2]


@torch.no_grad()
def decode(model, share, device):
    """
    Decode completions of given lengths greedily.

    Args:
        model: A causal model in evaluation mode.
        share: `GenerationBatch.share`, longest rows first.

    Returns:
        `list[torch.Tensor]`: the tokens of each step, of the rows that were alive in it, of shape `(alive, 1)`.
    """
    sizes = [len(completion) for completion in share.completions]
    prompts = torch.tensor(share.prompts, device=device)
    start = prompts.shape[1]
    prefilled = model(input_ids=prompts, use_cache=True, logits_to_keep=1, **{CACHE: DynamicCache()})
    rows = torch.tensor(share.groups, device=device)
    cache = Cache(
        [PrefixLayer(layer.keys[rows], layer.values[rows], start + sizes[0]) for layer in prefilled[CACHE].layers]
    )
    tokens = [prefilled.logits[rows, -1:].argmax(-1)]
    for step in range(1, sizes[0]):
        alive = sum(size > step for size in sizes)
        positions = torch.full((alive, 1), start + step - 1, device=device)
        output = model(input_ids=tokens[-1][:alive], position_ids=positions, use_cache=True, **{CACHE: cache})
        tokens.append(output.logits[:, -1:].argmax(-1))
    return tokens

"""Mean states of prompts: what a model makes of a prompt before it answers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .._files import replacing
from .score_store import model_identity
from .scoring import token_batches


@torch.no_grad()
def prompt_states(model, prompts: Sequence[list[int]], *, max_batch_tokens: int = 16384) -> torch.Tensor:
    """
    Mean over the tokens of each prompt of the model's last hidden states, which its LM head would read.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model, in evaluation mode, or a PEFT model.
        prompts (`Sequence[list[int]]`): Token ids, at least one each.
        max_batch_tokens (`int`, *optional*, defaults to `16384`): Most tokens of a batch, padding included.

    Returns:
        `torch.Tensor` of shape `(num_prompts, width)`, float32, on the CPU.
    """
    if hasattr(model, "get_base_model"):  # PEFT's layers are inside the base model
        model = model.get_base_model()
    backbone = model.get_decoder()
    device = next(model.parameters()).device
    states: dict[int, torch.Tensor] = {}
    for batch in token_batches([len(prompt) for prompt in prompts], max_batch_tokens):
        width = max(len(prompts[row]) for row in batch)
        ids = torch.tensor([prompts[row] + [0] * (width - len(prompts[row])) for row in batch])
        mask = torch.tensor([[1] * len(prompts[row]) + [0] * (width - len(prompts[row])) for row in batch])
        outputs = backbone(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        hidden = outputs.last_hidden_state.float()
        kept = mask.to(hidden.device)[..., None].to(hidden.dtype)
        means = (hidden * kept).sum(1) / kept.sum(1)
        states |= dict(zip(batch, means.cpu(), strict=True))
    return torch.stack([states[row] for row in range(len(prompts))])


def kept_prompt_states(
    path: Path,
    name: str,
    prompts: Sequence[list[int]],
    load_model: Callable[[], torch.nn.Module],
    *,
    dtype: str = "auto",
    max_batch_tokens: int = 16384,
) -> torch.Tensor:
    """
    [`prompt_states`], computed once and kept in a file.

    Args:
        path (`Path`): The file. One of another model, dtype or other prompts is written anew.
        name (`str`): Hub name or folder of the model.
        prompts (`Sequence[list[int]]`): Token ids.
        load_model (`Callable`): Returns the model; not called if the file has the states.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the weights.
        max_batch_tokens (`int`, *optional*, defaults to `16384`): Argument of [`prompt_states`].
    """
    settings = json.dumps([model_identity(name), dtype, prompts])
    digest = hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()
    if path.exists():
        with np.load(path) as data:
            if str(data["digest"]) == digest:
                return torch.from_numpy(data["states"])
    states = prompt_states(load_model(), prompts, max_batch_tokens=max_batch_tokens)
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, digest=digest, states=states.numpy())
    return states

"""
Score given text with a model: entropy, log-probability and alternatives of every completion token.

Logits are never held for more than a slice of the positions of one batch: 16,384 tokens of a 150k-word vocabulary
would take 10 GB in float32.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..entropy import token_entropy
from ..looped.credit import exit_distribution


# Logits at a time: 2**25 of them take 128 MiB in float32, and a few times that during the computation. A much smaller
# number is slower on an accelerator, and blocks below 32 MiB come from glibc's heap, which small tensors left between
# them made grow to 10 GB (seen with 2**22).
_LOGITS_PER_SLICE = 2**25


@dataclass
class TokenScores:
    """
    Scores of a model for the tokens of one completion.

    Args:
        entropies (`np.ndarray` of shape `(length,)`): Entropy of the distribution of each token, float32 nats.
        log_probs (`np.ndarray` of shape `(length,)`): Log-probability of each token, float32 nats.
        top_ids (`np.ndarray` of shape `(length, k)`): The `k` most likely tokens, most likely first, int32.
        top_probs (`np.ndarray` of shape `(length, k)`): Their probabilities, float32.
        loop_entropies (`np.ndarray` of shape `(length, num_loops)`, *optional*):
            Of a looped model: the entropy after each loop; the last column is `entropies`.
        exit_probs (`np.ndarray` of shape `(length, num_loops)`, *optional*):
            Of a looped model: the probability that its gate leaves after each loop, at the position that predicts the
            token.
    """

    entropies: np.ndarray
    log_probs: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray
    loop_entropies: np.ndarray | None = None
    exit_probs: np.ndarray | None = None


@torch.no_grad()
def score_completions(
    model: torch.nn.Module,
    rows: Sequence[tuple[list[int], list[int]]],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    max_batch_tokens: int = 16384,
    progress: tqdm | None = None,
    loops: bool = False,
) -> list[TokenScores]:
    """
    Score completions under a model, in batches of similar length.

    The result equals, row by row:

    ```
    log_probs = model(prompt + completion).logits[len(prompt) - 1 : -1].div(temperature).log_softmax(-1)
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    ```

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, in evaluation mode, or a PEFT model around one.
        rows (`Sequence` of `(prompt_ids, completion_ids)`):
            Token ids; at least one of the prompt. An empty completion has empty scores.
        temperature (`float`, *optional*, defaults to `1.0`):
            Decoding temperature; must be positive.
        top_k (`int`, *optional*, defaults to `0`):
            Number of most likely tokens to return at each position.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Most tokens of a batch, padding included. A single longer row is a batch by itself.
        progress (`tqdm`, *optional*):
            Bar to update by the number of completion tokens scored.
        loops (`bool`, *optional*, defaults to `False`):
            Whether to score a looped model after each of its loops too, from the same forward pass.

    Returns:
        `list[TokenScores]`: one per row, in the order of `rows`.

    Raises:
        `ValueError`: if the temperature is not positive, or a prompt is empty: nothing would predict the first token.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}: at 0 every distribution is one-hot.")
    for index, (prompt_ids, _) in enumerate(rows):
        if len(prompt_ids) == 0:
            raise ValueError(f"row {index} has an empty prompt: nothing would predict its first completion token.")
    scores: dict[int, TokenScores] = {}
    for batch in token_batches([len(prompt) + len(completion) for prompt, completion in rows], max_batch_tokens):
        for index, row_scores in zip(
            batch, _score_batch(model, [rows[i] for i in batch], temperature, top_k, loops), strict=True
        ):
            scores[index] = row_scores
            if progress is not None:
                progress.update(len(rows[index][1]))
    return [scores[index] for index in range(len(rows))]


def token_batches(lengths: list[int], max_batch_tokens: int):
    """Row indices in batches of bounded size, the longest first: a batch too large for memory then fails at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _score_batch(model, rows, temperature: float, top_k: int, loops: bool) -> list[TokenScores]:
    device = next(model.parameters()).device
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    predicts = torch.zeros_like(input_ids, dtype=torch.bool)  # the positions before each completion token
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        attention_mask[row, :end] = (
            1  # padding is on the right, where no token attends to it and positions count from 0
        )
        predicts[row, len(prompt) - 1 : end - 1] = True
    targets = torch.cat([torch.tensor(completion, dtype=torch.long) for _, completion in rows]).to(device)

    # Allocated before the slices, so that no small tensor stays between large blocks that are freed.
    log_probs = torch.empty(len(targets))
    top_ids = torch.empty(len(targets), top_k, dtype=torch.int32)
    top_probs = torch.empty(len(targets), top_k)
    inputs = (input_ids.to(device), attention_mask.to(device), predicts.to(device))
    with _logits_of_slices(model, *inputs, loops=loops) as (num_loops, exit_probs, slices):
        entropies = torch.empty(len(targets), num_loops)
        start = 0
        for logits_of_loops in slices:
            for loop, logits in enumerate(logits_of_loops):  # (positions, vocabulary)
                logits = logits.float() / temperature
                part = slice(start, start + len(logits))
                entropies[part, loop] = token_entropy(logits)
            # Those of the last loop, from which tokens are drawn
            start = part.stop
            log_z = logits.logsumexp(-1)
            largest = logits.topk(top_k, dim=-1)
            log_probs[part] = logits.gather(1, targets[part, None].to(logits.device))[:, 0] - log_z
            top_ids[part] = largest.indices.int()
            top_probs[part] = (largest.values - log_z[:, None]).exp()
    lengths = [len(completion) for _, completion in rows]
    columns = [entropies[:, -1].contiguous(), log_probs, top_ids, top_probs]
    if loops:
        columns += [entropies, exit_probs]
    rows_of_columns = (column.split(lengths) for column in columns)
    return [TokenScores(*(column.numpy() for column in row)) for row in zip(*rows_of_columns, strict=True)]


@contextmanager
def _logits_of_slices(model, input_ids, attention_mask, wanted, *, loops: bool = False):
    """
    Logits at the `wanted` positions, row by row, a bounded number of them at a time.

    Gives the number of loops, the exit probabilities `(positions, loops)` or `None`, and slices, each of which yields
    the logits after each loop, those of the last one last.

    The backbone runs once. Then the model's own `forward` runs on slices of the backbone's output, so that soft caps,
    scales and other steps of an architecture around its LM head are done by its own code.
    """
    if hasattr(model, "get_base_model"):  # PEFT's layers are inside the base model
        model = model.get_base_model()
    backbone = model.get_decoder()
    options = {"output_loop_states": True} if loops else {}
    outputs = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options)
    states = outputs.loop_states if loops else [outputs.last_hidden_state]
    states = [state[wanted.to(state.device)] for state in states]  # (positions, hidden size) of each loop
    exit_probs = exit_distribution(outputs.gate_logits[wanted]).cpu() if loops else None
    size = max(1, _LOGITS_PER_SLICE // model.get_output_embeddings().weight.shape[0])

    calls = []

    def replay(*args, **kwargs):
        calls.append(1)
        return outputs

    def logits_of(part):
        calls.clear()
        outputs.last_hidden_state = part[None]
        # Some architectures read the shape of their input.
        logits = model(input_ids=input_ids.new_zeros(1, len(part)), use_cache=False).logits[0]
        if len(calls) != 1:
            raise NotImplementedError(
                f"{type(model).__name__} does not call its decoder, a {type(backbone).__name__}, once per forward "
                "pass: its logits cannot be computed in slices."
            )
        return logits

    def slices():
        if len(states[-1]):
            for parts in zip(*(state.split(size) for state in states), strict=True):
                yield map(logits_of, parts)

    original = backbone.__dict__.get("forward")  # set on the instance by accelerate's hooks and others, or not at all
    backbone.forward = replay
    try:
        yield len(states), exit_probs, slices()
    finally:
        del backbone.forward
        if original is not None:
            backbone.forward = original

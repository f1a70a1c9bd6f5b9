"""
A decoding loop for `generate` of transformers, for batches of many completions of few prompts.

It is quicker than the loop it stands in for, and its rows do not depend on each other:

- a prompt is read once, and its keys and values are copied to all of its completions;
- a completion that has ended leaves the batch, as in continuous batching;
- each completion draws from random numbers of its own.

Give it to `generate` as `custom_generate`, which prepares logits processors, stopping criteria and cache as for its
own loop.
"""

import copy
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from .._logging import logger
from .._transformers import CACHE
from .decodable import CannotDecodeError, check_inputs, check_limit_of_cache, reason_against
from .key_values import move_rows, with_rows
from .sampling import draw_tokens


class Decoded(NamedTuple):
    """
    Completions with their prompts.

    Args:
        sequences (`torch.LongTensor` of shape `(batch, prompt length + longest completion)`):
            Prompts as they were given, and completions, padded on the right.
        lengths (`torch.LongTensor` of shape `(batch,)`):
            Tokens of each completion, its end among them.
    """

    sequences: torch.Tensor
    lengths: torch.Tensor


@dataclass
class DecodingLoop:
    """
    A decoding loop of `generate`: greedy, or sampling with random numbers of each row.

    Args:
        uniforms (`Callable`):
            `uniforms(rows, place)` gives the numbers in [0, 1) with which the rows of the batch (`(rows,)` long)
            draw token number `place` of their completion, float64 of shape `(rows,)`.
        max_rows (`int`, *optional*):
            Completions at a time; by default all. Halved while the device is out of memory.
        synchronize (`Callable`, *optional*):
            For processes that must run the same number of forward passes: `synchronize(active)` is called before each
            pass, and after the last one with `False` until it gives `False`, as no process is active any more.

    Raises:
        [`CannotDecodeError`]: on a model with an input or a cache that it does not know.
    """

    uniforms: Callable[[torch.Tensor, int], torch.Tensor]
    max_rows: int | None = None
    synchronize: Callable[[bool], bool] | None = None

    @torch.no_grad()
    def __call__(
        self,
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config: GenerationConfig,
        **model_kwargs,
    ) -> Decoded:
        """
        Complete prompts that are padded on the left; the arguments are those that `generate` gives to a loop.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, prompt length)`): The prompts.
        """
        check_inputs(model_kwargs, stopping_criteria)
        # The settings that the caller has left open are those of the model's own configuration by now.
        if reason := reason_against(model, generation_config):
            raise CannotDecodeError(reason)
        # Limits differ between processes, which must take the same way if they wait for each other.
        check_limit_of_cache(model, stopping_criteria.max_length if self.synchronize is None else sys.maxsize)
        batch = _Batch(self, model, logits_processor, stopping_criteria, generation_config, model_kwargs, input_ids)
        remaining = batch.order
        with getattr(model, "_optimize_model_for_decode", nullcontext)(), _without_cudnn_attention():
            while len(remaining):
                rows = remaining[: self.max_rows]
                if self._fits(batch, rows):
                    remaining = remaining[len(rows) :]
            self._run_until_all_have_ended(batch)
        return batch.result()

    def _fits(self, batch: "_Batch", rows: torch.Tensor) -> bool:
        """Complete rows, unless the device is out of memory. Their random numbers make a second try the same."""
        try:
            batch.complete(rows)
            return True
        except RuntimeError as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
            if not out_of_memory or len(rows) == 1 or self.synchronize is not None:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.max_rows = -(-len(rows) // 2)
        logger.warning(
            f"Out of memory while {len(rows)} completions were generated: from here on they are generated in batches "
            f"of at most {self.max_rows}. The completions are the same."
        )
        return False

    def _run_until_all_have_ended(self, batch: "_Batch") -> None:
        if self.synchronize is not None:
            token = batch.input_ids[:1, -1:]
            while self.synchronize(False):
                batch.model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False)


class _Batch:
    """The prompts of one call of `generate`, and the completions made so far."""

    def __init__(self, loop, model, logits_processor, stopping_criteria, generation_config, model_kwargs, input_ids):
        self.loop, self.model, self.input_ids = loop, model, input_ids
        self.logits_processor = LogitsProcessorList(map(_of_any_rows, logits_processor))
        self.stopping_criteria = stopping_criteria
        self.greedy = not generation_config.do_sample
        self.cache = model_kwargs[CACHE]
        self.settings = {name: model_kwargs[name] for name in ("use_cache", "logits_to_keep") if name in model_kwargs}
        mask = model_kwargs.get("attention_mask")
        self.mask = torch.ones_like(input_ids) if mask is None else mask
        self.positions = model_kwargs.get("position_ids")
        self.lengths = self.mask.sum(1)
        # `prompts` numbers the different prompts. Rows of a prompt stay together, the longest prompts come first.
        self.prompts = torch.unique(torch.cat([input_ids, self.mask], dim=1), dim=0, return_inverse=True)[1]
        places = zip((-self.lengths).tolist(), self.prompts.tolist(), strict=True)
        order = sorted(range(len(input_ids)), key=list(places).__getitem__)
        self.order = torch.tensor(order, device=input_ids.device)
        self.width = input_ids.shape[1]
        self.longest = stopping_criteria.max_length  # with the padded prompt
        pad = generation_config.pad_token_id
        self.sequences = torch.nn.functional.pad(input_ids, (0, self.longest - self.width), value=pad or 0)
        self.completion_lengths = torch.zeros_like(self.lengths)
        # A penalty of repeated tokens would take padding for tokens, and the pad token is often the end token.
        if generation_config.repetition_penalty not in (None, 1.0):
            first = input_ids.gather(1, self.mask.argmax(1, keepdim=True))
            self.seen = torch.where(self.mask != 0, input_ids, first)
        else:
            self.seen = input_ids

    def result(self) -> Decoded:
        end = self.width + int(self.completion_lengths.max())
        return Decoded(self.sequences[:, :end], self.completion_lengths)

    def complete(self, rows: torch.Tensor) -> None:
        """Complete some rows of the batch."""
        width, room = int(self.lengths[rows].max()), self.longest - self.width
        _, prompt_of, firsts = _distinct(self.prompts[rows])
        cache, logits = self._read_prompts(rows[firsts], width)
        cache, logits = with_rows(cache, prompt_of, width + room), logits[prompt_of]
        ids = torch.nn.functional.pad(self.seen[rows], (0, room))
        mask = self.mask[rows, self.width - width :]
        mask = None if bool(mask.all()) else torch.nn.functional.pad(mask, (0, room), value=1)
        positions, place, active = self.lengths[rows], 0, rows.clone()
        while True:
            end = self.width + place
            # transformers asks for a `LongTensor`, which no operation of PyTorch returns to a type checker.
            scores = self.logits_processor(ids[:, :end], logits.float())  # type: ignore[arg-type]
            tokens = scores.argmax(-1) if self.greedy else draw_tokens(scores, self.loop.uniforms(active, place))
            ids[:, end] = tokens
            place, end = place + 1, end + 1
            ended = self.stopping_criteria(ids[:, :end], None)
            if ended.any():
                done = active[ended]
                self.sequences[done, self.width : end] = ids[ended, self.width : end]
                self.completion_lengths[done] = place
                sources, targets, num_rows = _closing_up(ended)
                if num_rows == 0:
                    return
                move_rows(cache, sources, targets, num_rows)
                ids, mask, positions, active = (
                    _close_up(values, sources, targets, num_rows) for values in (ids, mask, positions, active)
                )
            logits = self._forward(
                ids[:, :end],
                cache,
                mask=None if mask is None else mask[:, : width + place],
                positions=(positions + (place - 1)).unsqueeze(1),
                next_sequence_length=1,
            )

    def _read_prompts(self, rows: torch.Tensor, width: int):
        """Cache of prompts without a completion, and the logits of their first tokens."""
        cache = copy.deepcopy(self.cache)
        mask = self.mask[rows, self.width - width :]
        logits = self._forward(
            self.input_ids[rows, self.width - width :],
            cache,
            mask=None if bool(mask.all()) else mask,
            positions=None if self.positions is None else self.positions[rows, self.width - width :],
            is_first_iteration=True,
        )
        return cache, logits

    def _forward(self, ids, cache, *, mask, positions, **settings) -> torch.Tensor:
        """Logits of the next token, shape `(batch, vocabulary)`."""
        placed = {} if self.positions is None else {"position_ids": positions}
        inputs = self.model.prepare_inputs_for_generation(
            ids, attention_mask=mask, **{CACHE: cache}, **placed, **settings, **self.settings
        )
        if inputs.get(CACHE) is not cache:
            raise CannotDecodeError("the model does not go on with its cache")
        if self.loop.synchronize is not None:
            self.loop.synchronize(True)
        return self.model(**inputs, return_dict=True).logits[:, -1]


@contextmanager
def _without_cudnn_attention():
    """
    Without cuDNN's attention, PyTorch's first choice on an H100, which prepares a plan for each number of rows and
    tokens it meets (tens of milliseconds on the host). Here nearly every forward pass has others.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


def _of_any_rows(processor):
    """A logits processor for rows of any number, in any order."""
    of_rows = isinstance(getattr(processor, "prompt_ignore_length", None), torch.Tensor)
    # transformers tells it the padding of each row of the batch. This loop shows it no padding.
    return RepetitionPenaltyLogitsProcessor(processor.penalty) if of_rows else processor


def _distinct(numbers: torch.Tensor):
    """Distinct numbers, the place of each number among them, and the first place where each occurs."""
    distinct, inverse = torch.unique(numbers, return_inverse=True)
    places = torch.arange(len(numbers), device=numbers.device)
    firsts = torch.full_like(distinct, len(numbers)).scatter_reduce(0, inverse, places, "amin")
    return distinct, inverse, firsts


def _closing_up(ended: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """
    Moves that bring the rows that go on to the front: rows from the end take the places of those that have ended.

    Returns:
        `tuple`: places to copy from, places to copy to, and the number of rows that go on.
    """
    num_rows = int((~ended).sum())
    return (~ended[num_rows:]).nonzero().squeeze(1) + num_rows, ended[:num_rows].nonzero().squeeze(1), num_rows


def _close_up(values, sources, targets, num_rows: int):
    if values is None:
        return None
    values[targets] = values[sources]
    return values[:num_rows]

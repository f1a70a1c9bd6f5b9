"""Completions of prompts, each with a seed of its own."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, StoppingCriteriaList

from .decoding import CannotDecodeError, DecodingLoop, reason_against


@torch.inference_mode()
def complete(
    model,
    prompts: list[list[int]],
    seeds: list[int],
    config: GenerationConfig,
    *,
    logits_processor: Sequence[LogitsProcessor] = (),
    stopping_criteria: Sequence[StoppingCriteria] = (),
) -> list[list[int]]:
    """
    Complete each prompt once. The other rows of a batch change a completion only through the rounding of its logits:
    almost never in float32, now and then in bfloat16.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model, on its device.
        prompts (`list[list[int]]`): Token ids. A prompt that occurs several times is read once.
        seeds (`list[int]`): One seed per prompt.
        config ([`~transformers.GenerationConfig`]):
            Settings of `generate`, with `max_new_tokens` and a `pad_token_id`. Open values are not taken from the
            model's own configuration, which for a chat model may hold an unwanted penalty or top-k.
        logits_processor, stopping_criteria (*optional*):
            As `generate` takes them. They are called with rows of any number, in any order.

    Returns:
        `list[list[int]]`: token ids of each completion, its end token included.
    """
    original, base = model.generation_config, getattr(model, "get_base_model", lambda: model)()
    model.generation_config = base.generation_config = config
    settings = {
        "logits_processor": list(logits_processor),
        "stopping_criteria": StoppingCriteriaList(stopping_criteria),
    }
    try:
        if reason_against(model, config) is None:
            try:
                return _together(model, prompts, seeds, config, settings)
            except CannotDecodeError:
                pass
        return [_alone(model, prompt, seed, settings) for prompt, seed in zip(prompts, seeds, strict=True)]
    finally:
        model.generation_config = base.generation_config = original


def _together(model, prompts, seeds, config, settings) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[config.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    numbers = torch.stack(
        [torch.rand(config.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    ).to(model.device)  # (batch, tokens)
    loop = DecodingLoop(lambda rows, place: numbers[rows, place].double())
    decoded = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), custom_generate=loop, **settings
    )
    rows = decoded.sequences[:, width:].tolist()
    return [row[:length] for row, length in zip(rows, decoded.lengths.tolist(), strict=True)]


def _alone(model, prompt, seed, settings) -> list[int]:
    ids = torch.tensor([prompt], device=model.device)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return output[0, len(prompt) :].tolist()

"""What [`~generation.decoding.DecodingLoop`] can decode, and what is left to the loop of `generate`."""

from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import CacheLayerMixin
from transformers.generation import GenerationMode

from .._transformers import CACHE
from .rotary import rescales_with_length


class CannotDecodeError(NotImplementedError):
    """The model needs something that the loop does not do. PyTorch's random numbers have not been drawn from."""


_TAKEN = {"attention_mask", "position_ids", CACHE, "use_cache", "logits_to_keep"}


def check_inputs(model_kwargs: dict, stopping_criteria) -> None:
    """Refuse what `generate` hands to a loop where [`~generation.decoding.DecodingLoop`] cannot go on with it."""
    others = [name for name, value in model_kwargs.items() if name not in _TAKEN and value is not None]
    if others:
        raise CannotDecodeError(f"the model takes {', '.join(sorted(others))}")
    cache, positions = model_kwargs.get(CACHE), model_kwargs.get("position_ids")
    if (
        type(cache) is not DynamicCache
        # Mamba's has no keys, and no length to be asked for
        or (cache.layers and not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers))
        or cache.get_seq_length()
        or not all(hasattr(layer, "reorder_cache") for layer in cache.layers)
    ):
        raise CannotDecodeError(f"the model has a cache of the kind {type(cache).__name__}")
    if positions is not None and positions.dim() != 2:
        raise CannotDecodeError("the model has several positions per token")
    if stopping_criteria.max_length is None:
        raise CannotDecodeError("there is no limit of the length")


def check_limit_of_cache(model, longest: int) -> None:
    """Phi-3 and its kin read all tokens anew once there are more than this, whatever their rotary factors are."""
    limit = getattr(model.config, "original_max_position_embeddings", None)
    own = type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    if own and limit is not None and longest > limit:
        raise CannotDecodeError(f"the model begins its cache anew after {limit} tokens")


def reason_against(model, config: GenerationConfig) -> str | None:
    """
    Why [`~generation.decoding.DecodingLoop`] cannot stand in for the loop of `generate`; `None` if it can.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model that generates.
        config ([`~transformers.GenerationConfig`]): Settings of `generate`.
    """
    adapter = getattr(model, "active_peft_config", None)
    mode = config.get_generation_mode()
    reasons = {
        "the model is an encoder with a decoder": model.config.is_encoder_decoder,
        "the model's rotary factors change with the length of the batch": rescales_with_length(model.config),
        "the adapter puts virtual tokens before the prompt": getattr(adapter, "is_prompt_learning", False),
        f"the generation mode is {mode.value}": mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH),
        "use_cache is off": config.use_cache is False,
        **{
            f"{name}={value!r}": value not in harmless
            for name, harmless in _NOT_DONE.items()
            for value in [getattr(config, name, None)]
        },
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


# Settings that the loop does not honour, with their values that ask for nothing.
_NOT_DONE: dict[str, tuple] = {
    "num_return_sequences": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "max_time": (None,),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "watermarking_config": (None,),
    "cache_implementation": (None, "dynamic"),
    "cache_config": (None,),
    "prefill_chunk_size": (None,),
    "token_healing": (None, False),
    "return_dict_in_generate": (None, False),
    "compile_config": (None,),
}

"""Checks that completions are samples of the policy itself, which trajectory balance takes them for."""

from ._trl import truncates_sampling


# Arguments of `generate` and of vLLM that change the distribution of samples, and the values with which they do not.
_NEUTRAL = {
    "do_sample": True,
    "num_beams": 1,
    "num_beam_groups": 1,
    "best_of": 1,
    "use_beam_search": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "typical_p": 1.0,
    "top_h": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    "min_tokens": 0,
    "ignore_eos": False,
    "token_healing": False,
    **dict.fromkeys(("bad_words_ids", "bad_words", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids", "force_words_ids")),
    **dict.fromkeys(("constraints", "exponential_decay_length_penalty", "watermarking_config", "dola_layers")),
    **dict.fromkeys(("logit_bias", "allowed_token_ids", "structured_outputs", "guided_decoding", "logits_processor")),
    "prefix_allowed_tokens_fn": None,
}
# Those for which TRL has fields: where one is open, `generate` reads that of the model.
_FIELDS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
_REASON = (
    "does not go with objective='trajectory_balance': completions would come from another distribution than the "
    "policy, whose probabilities are compared with those of the reference"
)


def check_sampling(args) -> None:
    """
    Refuse settings of the run with which its completions are not samples of the policy.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.

    Raises:
        `ValueError`: naming the setting, its value, the rule and the remedy.
    """
    kwargs = args.generation_kwargs or {}
    if truncates_sampling(args):
        values = {name: kwargs.get(name, getattr(args, name)) for name in ("top_p", "top_k", "min_p")}
        found = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"Truncated sampling ({found}) {_REASON}. Set top_p=1.0, top_k=0 and min_p=None.")
    if args.repetition_penalty != 1.0:
        raise ValueError(f"repetition_penalty={args.repetition_penalty} {_REASON}. Set it to 1.0.")
    for name in kwargs.keys() & _NEUTRAL.keys():
        if kwargs[name] not in (None, _NEUTRAL[name]):
            raise ValueError(f"generation_kwargs: {name}={kwargs[name]!r} {_REASON}. Leave it out.")
    temperature = kwargs.get("temperature", args.temperature)
    if temperature != args.temperature:
        raise ValueError(
            f"generation_kwargs: temperature={temperature} {_REASON}; these are taken at temperature="
            f"{args.temperature}. Set temperature to the value wanted, and leave it out of generation_kwargs."
        )
    if args.vllm_structured_outputs_regex is not None:
        raise ValueError(
            f"vllm_structured_outputs_regex={args.vllm_structured_outputs_regex!r} {_REASON}. Leave it out."
        )


def check_model_sampling(model, settings: dict) -> None:
    """
    Refuse a model whose `generation_config.json` has settings with which completions are not samples of the policy.
    `generate` reads from there what a run leaves open.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model that generates.
        settings (`dict`): Arguments of `generate` by the run; `None` is open.

    Raises:
        `ValueError`: naming the setting, its value, the rule and the remedy.
    """
    config = getattr(model, "generation_config", None)
    for name, neutral in (_NEUTRAL | _FIELDS).items():
        value = getattr(config, name, None)
        if settings.get(name) is None and value not in (None, neutral):
            remedy = "Take it out of that file (of model.generation_config, for a model that is loaded already)"
            if neutral is not None:
                remedy += f", or set generation_kwargs={{{name!r}: {neutral!r}}}"
            raise ValueError(f"generation_config.json of the model: {name}={value!r} {_REASON}. {remedy}.")

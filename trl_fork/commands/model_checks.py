"""Checks of the model of a run and of its adapter, before the weights are loaded."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import ModelConfig, get_peft_config

from .. import ForkingGRPOConfig
from ..generation.engines import check_model_path
from ..looped import OuroConfig


def check_model(model_config: ModelConfig, args: ForkingGRPOConfig) -> None:
    """
    Check what is known of a model and its adapter without its weights.

    Args:
        model_config ([`~trl.ModelConfig`]): The options of the model; `model_name_or_path` is set.
        args ([`ForkingGRPOConfig`]): Configuration of the run.

    Raises:
        `ValueError`: for a folder that is not there or holds no model, sizes of an adapter out of range, and credit of
            loops for a model without loops.
        `ImportError`: for `use_vllm` without vLLM.
    """
    model = model_config.model_name_or_path
    assert model is not None
    try:
        check_model_path(model)
    except ValueError as error:
        raise ValueError(f"model_name_or_path: {error}") from None
    refuse_adapter(model)
    attention = model_config.attn_implementation
    # One with a slash is a kernel of the Hub, and what comes before a bar is a way to page it.
    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if attention is not None and "/" not in attention and attention.rpartition("|")[2] not in known:
        raise ValueError(f"attn_implementation must be one of {known}, or a kernel of the Hub, got {attention!r}.")
    if model_config.lora_r is not None and model_config.lora_r < 1:
        raise ValueError(f"lora_r must be at least 1, got {model_config.lora_r}: it is the rank of the adapter.")
    if model_config.lora_dropout is not None and not 0 <= model_config.lora_dropout < 1:
        raise ValueError(f"lora_dropout must be in [0, 1), got {model_config.lora_dropout}: it is a probability.")
    if args.use_vllm and find_spec("vllm") is None:
        raise ImportError(
            "use_vllm is set, and vLLM is not installed. Install it (`pip install trl_fork[vllm]`), or set use_vllm "
            "to false."
        )
    if args.loop_credit is not None:
        config = AutoConfig.from_pretrained(
            model, revision=model_config.model_revision, trust_remote_code=args.trust_remote_code
        )
        if config.model_type != OuroConfig.model_type:
            raise ValueError(
                f"loop_credit={args.loop_credit!r} needs a looped language model, of the type "
                f"{OuroConfig.model_type!r}, and {model!r} is of the type {config.model_type!r}. Leave it out, or "
                "name another model."
            )


def adapter_of(model_config: ModelConfig):
    """The configuration of the adapter of a run; `None` without `use_peft`."""
    peft_config: Any = get_peft_config(model_config)
    targets = getattr(peft_config, "target_modules", None)
    # TRL makes a text of a list of one, and PEFT takes a text for a pattern of whole names, which q_proj is not.
    if isinstance(targets, str) and re.fullmatch(r"[\w.]+", targets):
        peft_config.target_modules = {targets}
    return peft_config


def refuse_adapter(model: str) -> None:
    """Refuse a folder without a model, for which transformers would say that its model is not recognized."""
    folder = Path(model)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"model_name_or_path: the folder {model!r} holds no model: there is no config.json in it.")
    raise ValueError(
        f"model_name_or_path: {model!r} holds an adapter, not a model. To train on, give its run's own command "
        "with --resume_from_checkpoint true; or merge it into its base model (merge_and_unload of PEFT) and name "
        "the folder of that."
    )

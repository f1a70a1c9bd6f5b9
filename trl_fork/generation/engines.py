"""Engines that sample completions of prompts: transformers, and vLLM."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import find_adapter_config_file

from ..looped import OuroConfig, with_end_of_turn  # importing it registers the model type of looped models
from .completions import complete
from .slow_dtypes import warn_of_slow_dtype
from .stopping import StopAtText, cut_at_stop, split_stop, stop_token_ids


class Sample(NamedTuple):
    """
    One sampled completion.

    Args:
        text (`str`): Its text, without special tokens, up to a stop string.
        length (`int`): Its length in tokens, the end-of-sequence token or those of the stop string included.
        truncated (`bool`): Whether it reached the limit without an end-of-sequence token or a stop string.
        ids (`tuple[int]`): Its tokens, those that `length` counts.
    """

    text: str
    length: int
    truncated: bool
    ids: tuple[int, ...] = ()


class TransformersEngine:
    """
    Samples with transformers, see [`~generation.completions.complete`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The model, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        temperature (`float`, *optional*, defaults to `1.0`): 0 is greedy.
        top_p (`float`, *optional*, defaults to `1.0`): Nucleus sampling.
        max_new_tokens (`int`, *optional*, defaults to `20480`): Limit of a completion, in tokens.
        stop (`Sequence[str]`, *optional*): Texts that end a completion. It is cut off before the first of them.
        end_ids (`Sequence[int]`, *optional*): End tokens; by default those of the model and its tokenizer.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=20480,
        stop: Sequence[str] = (),
        end_ids: Sequence[int] | None = None,
    ):
        self.stop, stop_ids = split_stop(stop, tokenizer)
        self.model = model.eval()
        warn_of_slow_dtype(model)
        self.tokenizer = tokenizer
        self.stop_ids = sorted({*(end_ids or stop_token_ids(model.generation_config, tokenizer)), *stop_ids})
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_ids[0]
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        self.config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=pad_id,
            **(sampling if temperature > 0 else {"do_sample": False}),
        )

    def generate(self, prompts: list[list[int]], seeds: list[int]) -> list[Sample]:
        """
        Sample one completion per prompt.

        Args:
            prompts (`list[list[int]]`): Token ids.
            seeds (`list[int]`): One seed per prompt.

        Returns:
            `list[Sample]`: one per prompt.

        Raises:
            `RuntimeError`: if the device is out of memory, with the remedy.
        """

        def stopping(prompt_length):
            return [StopAtText(self.tokenizer, self.stop, prompt_length)] if self.stop else []

        try:
            rows = complete(self.model, prompts, seeds, self.config, stopping_criteria=stopping)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"Out of memory with {len(prompts)} completions at a time. Run the same command with a smaller "
                "--batch_size: it continues where it stopped."
            ) from error
        stopped = stopping(0)[0].ended(rows) if self.stop else [False] * len(rows)
        return [self._sample(*row) for row in zip(rows, stopped, strict=True)]

    def _sample(self, ids: list[int], stopped: bool) -> Sample:
        text = cut_at_stop(self.tokenizer.decode(ids, skip_special_tokens=True), self.stop)
        return Sample(text, len(ids), truncated=not (stopped or ids[-1] in self.stop_ids), ids=tuple(ids))


_VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of `max_lora_rank`


class VLLMEngine:
    """
    Samples with vLLM, on one process (`tensor_parallel_size` GPUs). Every sample has its own seed.

    Args:
        model (`str`): Model, checkpoint or LoRA adapter.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        base_model (`str`, *optional*): Base of an adapter, if not the one its configuration names.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the weights.
        max_length (`int`, *optional*): Longest prompt and completion together, in tokens.
        tensor_parallel_size (`int`, *optional*, defaults to `1`): GPUs.
        temperature, top_p, max_new_tokens, stop, end_ids: Arguments of [`TransformersEngine`].

    Raises:
        `ImportError`: without vLLM.
    """

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        base_model: str | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
        tensor_parallel_size: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 20480,
        stop: Sequence[str] = (),
        end_ids: Sequence[int] | None = None,
    ):
        self._stop, special_ids = split_stop(stop, tokenizer)
        try:
            from vllm import LLM, SamplingParams
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise ImportError(
                "--engine vllm needs vLLM: `pip install trl_fork[vllm]`, or use --engine transformers."
            ) from error
        adapter = find_adapter_config_file(model)
        settings = {}
        self.lora = None
        if adapter:
            rank = json.loads(Path(adapter).read_text())["r"]
            settings = {"enable_lora": True, "max_lora_rank": min(r for r in _VLLM_LORA_RANKS if r >= rank)}
            self.lora = LoRARequest("adapter", 1, str(Path(adapter).parent))
        weights = base_of_adapter(model, base_model) or model
        self.llm = LLM(
            model=weights,
            dtype=dtype,
            max_model_len=max_length,
            tensor_parallel_size=tensor_parallel_size,
            **settings,
        )
        stop_ids = sorted({*(end_ids or end_token_ids(weights, tokenizer)), *special_ids})

        def parameters(seed: int):
            return SamplingParams(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                seed=seed,
                stop_token_ids=stop_ids,
                ignore_eos=end_ids is not None,  # the model's own end tokens, in place of which these are given
                stop=self._stop or None,
            )

        self._parameters = parameters

    def generate(self, prompts: list[list[int]], seeds: list[int]) -> list[Sample]:
        """Sample one completion per prompt; see [`TransformersEngine.generate`]."""
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [self._parameters(seed) for seed in seeds],
            lora_request=self.lora,
            use_tqdm=False,
        )
        completions = [output.outputs[0] for output in outputs]
        # If a token completes several stop strings, vLLM cuts at the first of its list.
        texts = [cut_at_stop(completion.text, self._stop) for completion in completions]
        return [
            Sample(text, len(completion.token_ids), completion.finish_reason == "length", tuple(completion.token_ids))
            for text, completion in zip(texts, completions, strict=True)
        ]


def load_model(
    name: str,
    *,
    base_model: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    device: torch.device | str = "cpu",
) -> torch.nn.Module:
    """
    Load a model: a name on the Hub, a folder or checkpoint, or a LoRA adapter on its base model.

    Args:
        name (`str`): The model.
        base_model (`str`, *optional*): Base of an adapter, if not the one its configuration names.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the weights; by default that of the checkpoint.
        attn_implementation (`str`, *optional*): Attention implementation of transformers.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Device of the model.

    Raises:
        `ValueError`: if the base of an adapter cannot be loaded, or is given for a model that is not an adapter.
    """
    base = base_of_adapter(name, base_model)
    settings = {"dtype": dtype, "attn_implementation": attn_implementation}
    if base is None:
        return auto_model_class(name).from_pretrained(name, **settings).to(device)
    from peft import PeftModel

    try:
        model = auto_model_class(base).from_pretrained(base, **settings)
    except OSError as error:
        raise ValueError(
            f"The adapter {name!r} belongs to the model {base!r}, which cannot be loaded. Give its place with "
            "--base_model."
        ) from error
    return PeftModel.from_pretrained(model, name).to(device)


def auto_model_class(name: str):
    """The class that loads a model for text; some image-text models are not registered as causal models."""
    config = AutoConfig.from_pretrained(base_of_adapter(name, None) or name)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def load_tokenizer(name: str, *, base_model: str | None = None) -> PreTrainedTokenizerBase:
    """
    Load the tokenizer beside a model or adapter, or else that of the adapter's base model.

    Args:
        name (`str`): A folder, or a name on the Hub.
        base_model (`str`, *optional*): Base model of an adapter, if not the one its configuration names.

    Raises:
        `ValueError`: for a path that does not exist, or a folder without a tokenizer, for which transformers would
            invent an empty one from the model's type.
    """
    base = base_of_adapter(name, base_model)
    source = name if base is None or has_tokenizer(name) else base
    if not has_tokenizer(source):
        raise ValueError(
            f"{source!r} has no tokenizer (tokenizer_config.json). Copy there that of the model it was trained from."
        )
    return AutoTokenizer.from_pretrained(source)


def has_tokenizer(model: str) -> bool:
    """Whether a model's folder has a tokenizer; a name on the Hub is assumed to have one."""
    folder = Path(model)
    return not folder.is_dir() or any(next(folder.glob(names), None) for names in ("tokenizer*", "vocab.*"))


def check_model_path(name: str) -> None:
    """
    Refuse a path without a folder, which transformers would look up on the Hub.

    Args:
        name (`str`):
            A path, or a name on the Hub, which is not looked up. `outputs/run` could be either: it is a path if there
            is a folder `outputs`.

    Raises:
        `ValueError`: naming the path and the working directory.
    """
    path = Path(name)
    looks_like_a_path = (
        name.startswith((".", "~", "/"))
        or name.endswith("/")
        or len(path.parts) > 2
        or (len(path.parts) == 2 and path.parent.is_dir())
    )
    if path.is_file():
        raise ValueError(f"{name!r} is a file: name the folder of the model.")
    if looks_like_a_path and not path.is_dir():
        raise ValueError(f"There is no folder {name!r} (looked from {Path.cwd()}).")


def base_of_adapter(name: str, base_model: str | None = None) -> str | None:
    """The base model of a LoRA adapter; `None` if the model is not an adapter."""
    check_model_path(name)
    config = find_adapter_config_file(name)
    if config is not None:
        return base_model or json.loads(Path(config).read_text())["base_model_name_or_path"]
    if base_model is not None:
        raise ValueError(f"--base_model {base_model!r} is for LoRA adapters; {name!r} has no adapter_config.json.")
    return None


def end_token_ids(name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """
    Token ids that end a completion of a model that is not loaded: those of its `generation_config.json`, or without
    one of its `config.json`, and that of its tokenizer.
    """
    model_config = AutoConfig.from_pretrained(name)
    try:
        config = GenerationConfig.from_pretrained(name)
    except OSError:
        config = GenerationConfig.from_model_config(model_config)
    if isinstance(model_config, OuroConfig):
        config.eos_token_id = with_end_of_turn(config.bos_token_id, config.eos_token_id)
    return stop_token_ids(config, tokenizer)

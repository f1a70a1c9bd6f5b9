"""Configuration of Ouro, a looped language model."""

from typing import ClassVar

from transformers import LlamaConfig

from .._logging import logger


_END_OF_TEXT, _END_OF_TURN = 0, 2  # `<|endoftext|>` and `<|im_end|>` of the published tokenizer


class OuroConfig(LlamaConfig):
    """
    Configuration of [`OuroForCausalLM`]: that of [`~transformers.LlamaConfig`], and loops.

    Source: "Scaling Latent Reasoning via Looped Language Models" (https://huggingface.co/papers/2510.25741). Sizes
    default to those of the class in the published repositories, as files that it has written leave them out.

    Args:
        total_ut_steps (`int`, *optional*, defaults to `4`):
            Number of times that the layers are run.
        early_exit_threshold (`float`, *optional*, defaults to `1.0`):
            Probability of having left at which the published code reads an earlier loop. It is kept in files, and not
            read here: logits are those of the last loop, as they are at the published value of 1.0.
        use_sliding_window, sliding_window, max_window_layers, layer_types (*optional*):
            Fields of published files. Attention is always full.
        kwargs:
            Fields of [`~transformers.LlamaConfig`]. `rope_theta` and `rope_scaling` of files of transformers 4 become
            `rope_parameters`. Where bos and eos are both 0, as in the published files, the token 2, which ends a turn
            of the chat, becomes an end token beside it.

    Raises:
        `ValueError`: for a number of loops below 1, or sliding windows.
    """

    model_type = "ouro"
    # TRL reads it of every model whose class is not in transformers; only published files have one of their own.
    auto_map: ClassVar[dict] = {}

    def __init__(
        self,
        total_ut_steps: int = 4,
        early_exit_threshold: float = 1.0,
        use_sliding_window: bool = False,
        sliding_window: int | None = None,
        max_window_layers: int | None = None,
        layer_types: list[str] | None = None,
        vocab_size: int = 151936,
        intermediate_size: int = 22016,
        max_position_embeddings: int = 32768,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **kwargs,
    ):
        check_num_loops("total_ut_steps", total_ut_steps)
        if use_sliding_window or set(layer_types or ()) - {"full_attention"}:
            found = f"use_sliding_window={use_sliding_window}" if use_sliding_window else f"layer_types={layer_types}"
            raise ValueError(
                f"{found}: no published Ouro has sliding windows, and this class attends to all tokens. Leave it out."
            )
        if early_exit_threshold < 1:
            logger.warning(
                f"early_exit_threshold={early_exit_threshold}: the published code reads an earlier loop below 1. Here "
                "all loops run and the last is read. Set total_ut_steps to run fewer."
            )
        self.total_ut_steps = total_ut_steps
        self.early_exit_threshold = early_exit_threshold
        self.use_sliding_window, self.max_window_layers = False, max_window_layers
        self.sliding_window = None
        super().__init__(
            vocab_size=vocab_size,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_position_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=with_end_of_turn(bos_token_id, eos_token_id),
            **kwargs,
        )


def with_end_of_turn(bos_token_id, eos_token_id):
    """End tokens of a published Ouro, whose files name `<|endoftext|>` alone; others as they are."""
    if bos_token_id == eos_token_id == _END_OF_TEXT:
        return [_END_OF_TURN, _END_OF_TEXT]
    return eos_token_id


def check_num_loops(name: str, value) -> None:
    """Refuse a number of loops that is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}: the layers run so many times.")

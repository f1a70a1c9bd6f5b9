"""Reinforcement learning of language models on the tokens that matter, as an extension of TRL."""

from typing import TYPE_CHECKING

from ._lazy import lazy_names


__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from .credit.selection import select_tokens as select_tokens
    from .entropy import token_entropy as token_entropy
    from .generation.fork_temperature import ForkTemperatureLogitsProcessor as ForkTemperatureLogitsProcessor
    from .trainer.forking_grpo_config import ForkingGRPOConfig as ForkingGRPOConfig
    from .trainer.forking_grpo_trainer import ForkingGRPOTrainer as ForkingGRPOTrainer

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "credit.selection": ["select_tokens"],
        "entropy": ["token_entropy"],
        "generation.fork_temperature": ["ForkTemperatureLogitsProcessor"],
        "trainer.forking_grpo_config": ["ForkingGRPOConfig"],
        "trainer.forking_grpo_trainer": ["ForkingGRPOTrainer"],
    },
)

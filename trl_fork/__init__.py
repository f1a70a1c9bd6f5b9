"""Reinforcement learning of language models on forking tokens only, as an extension of TRL."""

from .entropy import token_entropy
from .fork_temperature import ForkTemperatureLogitsProcessor
from .forking_grpo_config import ForkingGRPOConfig
from .forking_grpo_trainer import ForkingGRPOTrainer
from .selection import select_tokens


__version__ = "0.1.0.dev0"

__all__ = [
    "ForkTemperatureLogitsProcessor",
    "ForkingGRPOConfig",
    "ForkingGRPOTrainer",
    "select_tokens",
    "token_entropy",
]

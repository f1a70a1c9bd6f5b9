"""
Looped language models: the same layers, run several times.

Importing this package teaches transformers' `AutoConfig` and `AutoModelForCausalLM` the model type `ouro`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .config import OuroConfig, with_end_of_turn
from .model import OuroCausalLMOutput, OuroForCausalLM, OuroModel, OuroModelOutput, exit_gate_of, find_looped


AutoConfig.register(OuroConfig.model_type, OuroConfig, exist_ok=True)
AutoModel.register(OuroConfig, OuroModel, exist_ok=True)
AutoModelForCausalLM.register(OuroConfig, OuroForCausalLM, exist_ok=True)

__all__ = [
    "OuroCausalLMOutput",
    "OuroConfig",
    "OuroForCausalLM",
    "OuroModel",
    "OuroModelOutput",
    "exit_gate_of",
    "find_looped",
    "with_end_of_turn",
]

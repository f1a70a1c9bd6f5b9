"""
Looped language models: the same layers, run several times.

Importing this package teaches transformers' `AutoConfig` and `AutoModelForCausalLM` the model type `ouro`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .config import OuroConfig, with_end_of_turn
from .credit import exit_distribution, expected_depth_loss, gate_loss, gate_targets, loop_weights
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
    "exit_distribution",
    "exit_gate_of",
    "expected_depth_loss",
    "find_looped",
    "gate_loss",
    "gate_targets",
    "loop_weights",
    "with_end_of_turn",
]

"""Weights that a processor computes with slowly."""

import torch

from .._logging import logger


def warn_of_slow_dtype(model: torch.nn.Module) -> None:
    """
    Warn if a model's weights are in bfloat16 on a processor without instructions for it.

    PyTorch then converts every matrix before it multiplies. Checkpoints of today are in bfloat16, and a command loads
    them as they are.

    Args:
        model (`torch.nn.Module`): The model, on its device.
    """
    weight = next(model.parameters())
    # PyTorch says by name only which vectors the processor has. AVX512 may be with or without instructions for
    # bfloat16; AVX2 is without.
    slow = weight.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    if slow and weight.dtype == torch.bfloat16:
        logger.warning_once(
            "The model's weights are in bfloat16, for which this processor has no instructions (AVX2): SmolLM2-135M "
            "took twice as long as in float32, its larger matrix products five times. --dtype float32 needs twice the "
            "memory."
        )

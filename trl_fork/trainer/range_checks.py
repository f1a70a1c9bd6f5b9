"""
Ranges of options of TRL and transformers, which check them late, by another name, or not at all.

A temperature of 0 divides by it, and a negative coefficient turns a penalty into a reward; both would train.
"""

from importlib.metadata import version
from typing import Any, NamedTuple

from packaging.version import Version

from .._nearest import check_choice
from .._versions import LAST_TESTED


class Range(NamedTuple):
    """Where a number must be: from `low` (above it if `open`) up to `high`, if there is one."""

    low: float
    high: float | None = None
    open: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open else value >= self.low
        return above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.high is not None:
            return f"in {'(' if self.open else '['}{self.low:g}, {self.high:g}]"
        return f"{'above' if self.open else 'at least'} {self.low:g}"


_COUNT, _POSITIVE, _NOT_NEGATIVE = Range(1), Range(0, open=True), Range(0)
_SHARE, _POSITIVE_SHARE = Range(0, 1), Range(0, 1, open=True)

# Not among them: what means "off" below the range, such as max_grad_norm, save_total_limit and num_train_epochs.
RANGES = {
    "num_generations": Range(2),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "generation_batch_size"), _COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "steps_per_generation", "num_iterations"), _COUNT),
    **dict.fromkeys(("max_completion_length", "vllm_max_model_length", "vllm_tensor_parallel_size"), _COUNT),
    **dict.fromkeys(("temperature", "repetition_penalty", "adam_epsilon"), _POSITIVE),
    **dict.fromkeys(("learning_rate", "weight_decay", "beta", "epsilon", "epsilon_high", "delta"), _NOT_NEGATIVE),
    **dict.fromkeys(("top_k", "dataloader_num_workers", "warmup_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("save_steps", "eval_steps", "logging_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization"), _POSITIVE_SHARE),
    **dict.fromkeys(("min_p", "adam_beta1", "adam_beta2"), _SHARE),
    "seed": Range(0, 2**32 - 1),
    "vllm_server_port": Range(1, 65535),
}
# TRL looks at these after the model is loaded, or at the first loss.
CHOICES = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}


def check_ranges(args) -> None:
    """
    Refuse numbers out of range, and names that TRL does not know.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.

    Raises:
        `ValueError`: naming the option, its value and the range.
    """
    for name, allowed in RANGES.items():
        value: Any = getattr(args, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not allowed.holds(value):
            raise ValueError(f"{name} must be {allowed}, got {value!r}. Its default is {_default(args, name)}.")
    if getattr(args, "max_steps", -1) == 0:
        raise ValueError(
            "max_steps must be at least 1, or -1 for num_train_epochs, got 0, which transformers takes for -1: it "
            "would train for whole epochs."
        )
    for name, choices in known_choices().items():
        value = getattr(args, name, None)
        if value is not None:
            check_choice(name, value, choices)


def known_choices() -> dict[str, tuple[str, ...]]:
    """[`CHOICES`] of a TRL that has been tested; a newer one may have more."""
    return CHOICES if Version(version("trl")) <= Version(LAST_TESTED["trl"]) else {}


def _default(args, name: str) -> Any:
    return next((cls.__dict__[name] for cls in type(args).__mro__ if name in cls.__dict__), None)

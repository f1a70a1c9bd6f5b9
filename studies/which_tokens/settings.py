"""What is the same for all runs of the study, and what depends on the size of the model."""

from dataclasses import dataclass, replace

import torch

from trl_fork.tasks import digit_sums


@dataclass(frozen=True)
class Size:
    """
    Model and amount of work.

    Args:
        shape (`dict`): Shape of the Qwen3, see [`digit_sums.make_model`].
        warm_up_factor (`int`): Factor of `WARM_UP_STEPS`.
        warm_up_learning_rate (`float`): Their peak learning rate.
        prompts_per_update (`int`): With 8 rollouts each.
        updates (`int`): Optimizer steps of every run; a multiple of 16.
        start (`str`, *optional*): Size whose warmed-up model a run starts from; its own if not given.
    """

    shape: dict[str, int]
    warm_up_factor: int = 1
    warm_up_learning_rate: float = 3e-3
    prompts_per_update: int = 8
    updates: int = 48
    start: str | None = None


def _shape(hidden: int, layers: int) -> dict[str, int]:
    heads = hidden // 64
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 64,
    }


SIZES = {
    "tiny": Size(digit_sums.TINY),  # 0.45 million parameters: a CPU
    # For one GPU; not run yet.
    "30m": Size(_shape(512, 8), 2, 1e-3, prompts_per_update=32, updates=96),
    "100m": Size(_shape(768, 12), 2, 5e-4, prompts_per_update=32, updates=96),
}
SIZES |= {f"{name}-long": replace(size, updates=4 * size.updates, start=name) for name, size in SIZES.items()}
# Of supervised fine-tuning, with 64 demonstrations each
WARM_UP_STEPS = {"digit_sums": 300, "reach_target": 600, "chain_sum": 400, "countdown": 400}
NUM_GENERATIONS = 8
NUM_TEST = 256  # held-out problems, the same for every run
SAMPLES_PER_PROBLEM = 8  # of the last evaluation
EVALUATIONS = 6  # during training, at equal distances; and one before it
GRADIENT_SEEDS = (0, 1)  # of the arm on all tokens, whose gradient is taken apart
# In tokens; the longest demonstration fits
MAX_COMPLETION_LENGTH = dict.fromkeys(("digit_sums", "reach_target", "chain_sum", "countdown"), 56)
WARM_UP_SEED = 7


def conversation(task, problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.question(problem)}]


def device_settings() -> dict:
    # float32 throughout, on a GPU too: the differences between arms are not to be those of rounding.
    return {
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def short(value) -> float | None:
    """Five significant digits: the file of results is read by people, and kept in the repository."""
    return None if value is None else float(f"{float(value):.5g}")


def num_parameters(size: str) -> int:
    with torch.device("meta"):
        model = digit_sums.make_model(digit_sums.make_tokenizer(), 0, SIZES[size].shape)
    return sum(parameter.numel() for parameter in model.parameters())

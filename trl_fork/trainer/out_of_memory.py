"""An error that says which settings to turn when a device is out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..credit.pools import is_at_loss_time


@contextmanager
def explain_out_of_memory(trainer) -> Iterator[None]:
    """
    Within this context, an allocation that fails raises an error that names three settings.

    PyTorch's own names the bytes. The settings that free them depend on the activity.

    Args:
        trainer ([`ForkingGRPOTrainer`]): The trainer whose settings are named.

    Raises:
        `torch.OutOfMemoryError`: naming what was going on and the settings to turn, the first one first.
    """
    trainer._stopwatch.interrupted = None
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(_description(trainer, error)) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is one of an allocation; the allocator of the CPU has no exception of its own."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError)


def _description(trainer, error: RuntimeError) -> str:
    activity = trainer._stopwatch.interrupted
    if not trainer.model.training and activity != "training":
        activity = "evaluation"
    what, settings = _advice(trainer).get(activity, _otherwise(trainer))
    remedies = "\n".join(f"  {number}. {setting}" for number, setting in enumerate(settings[:3], 1))
    return (
        f"Step {trainer.state.global_step}: out of memory {what} ({str(error).splitlines()[0]}). Turn, in this "
        f"order:\n{remedies}\nThe page on adapters and memory of the documentation estimates both by model size and "
        "length."
    )


def _advice(trainer) -> dict[str, tuple[str, list[str]]]:
    """By activity: its description, and its settings with their values, the most useful one first."""
    args = trainer.args
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    # In these scopes the gradient depends on the micro-batch.
    of_micro_batches = is_at_loss_time(args.entropy_threshold_scope) or args.loss_type == "bnpo"
    shorter = f"max_completion_length ({args.max_completion_length}): memory grows with it"
    lighter = _lighter(trainer)
    vllm = f"vllm_gpu_memory_utilization ({args.vllm_gpu_memory_utilization}), or vllm_mode: server on another GPU"
    tokens = args.max_tokens_per_forward or "what a padded micro-batch holds"
    packed = (
        f"max_tokens_per_forward ({tokens}): smaller passes, of which a step makes at most "
        f"gradient_accumulation_steps ({accumulation}); the gradient is the same"
    )
    graph = "reuse_scoring_graph: false, as the graph of a whole batch is in memory with it"
    in_a_pass = (
        f"in a pass over {'packed' if trainer._savings.packing else size} completions",
        [
            *([graph] if args.reuse_scoring_graph else []),
            *([packed] if trainer._savings.packing and trainer._savings.ordering else []),
            f"per_device_train_batch_size ({size}): with gradient_accumulation_steps ({accumulation}) and "
            f"steps_per_generation ({args.steps_per_generation}) larger by the same factor "
            f"{'an update sees as many' if of_micro_batches else 'the gradient is the same'}",
            lighter if args.gradient_checkpointing else "gradient_checkpointing: true",
            shorter,
        ],
    )
    return {
        "evaluation": (
            "in evaluation",
            [
                f"per_device_eval_batch_size ({args.per_device_eval_batch_size}): completions at a time",
                shorter,
                "eval_strategy: 'no', and `trl-fork evaluate` afterwards",
            ],
        ),
        "generation": (
            f"while {args.generation_batch_size // trainer.accelerator.num_processes} completions were generated",
            [
                *([vllm] if args.use_vllm else []),
                f"generation_batch_size ({args.generation_batch_size} over all processes; steps_per_generation sets "
                "it too): completions at a time, a multiple of per_device_train_batch_size times processes. An update "
                "sees as many as before, the threshold scope batch fewer",
                shorter,
                lighter,
            ],
        ),
        "training": in_a_pass,
        "scoring": in_a_pass,
        "rewards": (
            "while rewards were computed",
            [
                "the device of a reward model, or its dtype: it is loaded beside the policy",
                f"generation_batch_size ({args.generation_batch_size} over all processes): completions at a time",
                shorter,
            ],
        ),
    }


def _otherwise(trainer) -> tuple[str, list[str]]:
    return (
        "in the optimizer or a checkpoint",
        [
            _lighter(trainer),
            f"optim ({trainer.args.optim}), such as paged_adamw_8bit",
            "ZeRO-3 over several GPUs (`trl-fork train --accelerate_config zero3`)",
        ],
    )


def _lighter(trainer) -> str:
    """The next smaller way to hold the model."""
    if getattr(trainer.model, "is_loaded_in_4bit", False):
        return "a smaller model: the weights are in 4 bits already"
    if getattr(trainer.model, "peft_config", None):
        return "load_in_4bit: true with use_peft (QLoRA)"
    return "use_peft: true with dtype: bfloat16 (LoRA): neither gradients nor optimizer for the base weights"

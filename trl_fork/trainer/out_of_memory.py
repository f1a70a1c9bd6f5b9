"""An error that says which settings to turn when a device is out of memory."""

import torch

from .telemetry import TelemetryMixin


class OutOfMemoryMixin(TelemetryMixin):
    """
    What [`ForkingGRPOTrainer`] makes of a device without memory: an error that names three settings.

    PyTorch's own names the bytes. Which settings free them depends on what was going on.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        [`~transformers.Trainer.train`].

        Raises:
            `torch.OutOfMemoryError`: naming what was going on and the settings to turn, the first one first.
        """
        self._stopwatch.interrupted = None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except RuntimeError as error:
            # The allocator of the CPU has no exception of its own.
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise torch.OutOfMemoryError(self._describe_out_of_memory(error)) from error

    def _describe_out_of_memory(self, error: RuntimeError) -> str:
        what, settings = self._settings_to_turn()
        remedies = "\n".join(f"  {number}. {setting}" for number, setting in enumerate(settings, 1))
        return (
            f"Step {self.state.global_step}: out of memory {what} ({str(error).splitlines()[0]}). Turn, in this "
            f"order:\n{remedies}\nEstimates by model size and length are in the documentation, on the page about "
            "adapters."
        )

    def _settings_to_turn(self) -> tuple[str, list[str]]:
        """What was going on, and three settings of it with their values."""
        args, activity = self.args, self._stopwatch.interrupted
        shorter = f"max_completion_length ({args.max_completion_length}): memory grows with it"
        if not self.model.training and activity != "training":
            return (
                "in evaluation",
                [
                    f"per_device_eval_batch_size ({args.per_device_eval_batch_size}): completions at a time",
                    shorter,
                    "eval_strategy: 'no', and trl-fork evaluate afterwards",
                ],
            )
        if getattr(self.model, "is_loaded_in_4bit", False):
            lighter = "a smaller model: the weights are in 4 bits already"
        elif getattr(self.model, "peft_config", None):
            lighter = "load_in_4bit: true with use_peft (QLoRA)"
        else:
            lighter = (
                "use_peft: true with dtype: bfloat16 (LoRA): neither gradients nor optimizer for the base weights"
            )
        if activity == "generation":
            number = args.generation_batch_size // self.accelerator.num_processes
            settings = [
                f"generation_batch_size ({args.generation_batch_size} over all processes; steps_per_generation sets "
                "it too): completions at a time, a multiple of per_device_train_batch_size times processes. An update "
                "sees as many as before, the threshold scope batch fewer",
                shorter,
                lighter,
            ]
            if args.use_vllm:
                settings.insert(
                    0,
                    f"vllm_gpu_memory_utilization ({args.vllm_gpu_memory_utilization}), or vllm_mode: server on "
                    "another GPU",
                )
            return f"while {number} completions were generated", settings[:3]
        if activity in ("training", "scoring"):
            size = args.per_device_train_batch_size
            cut = args.entropy_threshold_scope in ("micro_batch", "local") or args.loss_type == "bnpo"
            return (
                f"in a pass over {size} completions",
                [
                    f"per_device_train_batch_size ({size}): with gradient_accumulation_steps "
                    f"({args.gradient_accumulation_steps}) and steps_per_generation ({args.steps_per_generation}) "
                    f"larger by the same factor {'an update sees as many' if cut else 'the gradient is the same'}",
                    "gradient_checkpointing: true" if not args.gradient_checkpointing else lighter,
                    shorter,
                ],
            )
        if activity == "rewards":
            return (
                "while rewards were computed",
                [
                    "the device of a reward model, or its dtype: it is loaded beside the policy",
                    f"generation_batch_size ({args.generation_batch_size} over all processes): completions at a time",
                    shorter,
                ],
            )
        return (
            "in the optimizer or a checkpoint",
            [
                lighter,
                f"optim ({args.optim}), such as paged_adamw_8bit",
                "ZeRO-3 over several GPUs: trl-fork train --accelerate_config zero3",
            ],
        )

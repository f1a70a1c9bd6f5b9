"""Micro-batches without rows, for which there is neither a forward nor a backward pass."""

import torch
from transformers import Trainer


class EmptyBatchError(Exception):
    """The micro-batch has no rows. `_prepare_inputs` raises it, and the step that called it is left out."""


class SkipsEmptyBatches(Trainer):
    """
    Leaves out the training step of a micro-batch without rows.

    In the order of the trainer's bases it comes after [`~trl.GRPOTrainer`], which counts the step, and before
    [`~transformers.Trainer`], which would run it.
    """

    def training_step(self, *args, **kwargs):
        try:
            return super().training_step(*args, **kwargs)
        except EmptyBatchError:
            return torch.zeros((), device=self.args.device)

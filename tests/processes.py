"""The end of a process of a launch."""

import os
import sys

import torch


def leave() -> None:
    """
    End this process once all others have come here, at once.

    Gloo's threads may still hold tensors. To release them they need the interpreter's lock, which its tear-down holds
    while it waits for these threads (https://github.com/pytorch/pytorch/issues/190489). Launches aborted, or hung,
    after all work was done.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

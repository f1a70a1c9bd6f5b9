"""What a training step is measured with."""

import gc
import statistics
import time
from contextlib import contextmanager
from itertools import accumulate

import torch
import trl.trainer.utils
from transformers import TrainerCallback
from trl.kernels import ChunkedLogProbFunction

from trl_fork._logging import logger
from trl_fork.credit import credit_effect
from trl_fork.trainer import GenerationCallback


def run_settings(device) -> dict:
    """Settings of a run whose steps are measured: nothing is learned, saved or shown."""
    return {
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "gradient_checkpointing": True,
        "use_cpu": device == "cpu",
        "bf16": device != "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
    }


class Clock(TrainerCallback):
    """Seconds of each optimizer step, and processor seconds of this process. The rollout takes none here."""

    def __init__(self, device):
        self.device, self.steps = device, []

    def now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self.now()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        seconds, processor = (end - start for start, end in zip(self.start, self.now(), strict=True))
        self.steps.append({"seconds": seconds, "processor_seconds": processor})

    def medians(self, warm_up):
        """Median of the steps after the first `warm_up`."""
        measured = self.steps[warm_up:]
        return {name: statistics.median(step[name] for step in measured) for name in measured[0]}


class GradientError(TrainerCallback):
    """Distance of the first step's gradient to the exact one, relative to the norm of that; `None` without one."""

    def __init__(self, exact):
        self.exact, self.relative = exact, None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.exact is None or self.relative is not None:
            return
        found = [p.grad for p in model.parameters() if p.requires_grad]
        distance = sum((g.float() - e).square().sum() for g, e in zip(found, self.exact, strict=True))
        self.relative = (distance / sum(e.square().sum() for e in self.exact)).sqrt().item()


class PeakMemory(TrainerCallback):
    """
    Bytes that PyTorch holds at most during a step: `peak` beyond what it held at its start and, on a GPU, `total`.

    On a GPU it is that of the latest step: in the first one libraries allocate workspaces that stay. On the CPU it is
    that of the first one, which the profiler slows down.
    """

    def __init__(self, device, vocabulary):
        self.device, self.vocabulary, self.peak, self.total = device, vocabulary, None, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif self.peak is None:
            # TRL's head allocates tiles of this many columns, for any vocabulary. With a smaller one the rest is
            # never touched, so that it takes no memory, but would be counted.
            self.tile = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE
            trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(self.tile, self.vocabulary)
            self.profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            self.profile.start()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.device == "cuda":
            self.total = torch.cuda.max_memory_allocated()
            self.peak = self.total - self.before
        elif self.peak is None:
            self.profile.stop()
            trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = self.tile
            events = self.profile.profiler.kineto_results.events()
            changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
            self.peak = max(accumulate(change for _, change in changes))


class PassedTokens(TrainerCallback):
    """
    Tokens and positions of a model's forward passes from step `warm_up` on; `scored` are the tokens without gradient.
    """

    def __init__(self, model, warm_up):
        self.tokens = self.scored = self.positions = 0
        self.warm_up = warm_up
        model.get_decoder().register_forward_pre_hook(self.count, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.warm_up:
            self.tokens = self.scored = self.positions = 0

    def count(self, module, args, kwargs):
        mask = kwargs["attention_mask"]
        if mask is None or mask.dim() == 4:  # packed rows
            mask = torch.ones_like(kwargs["position_ids"])
        self.positions += mask.numel()
        self.tokens += mask.sum()  # read after the steps: the GPU is not waited for
        if not torch.is_grad_enabled():
            self.scored += mask.sum()


class CreditOfBatch(GenerationCallback):
    """Share of the completion tokens with a gradient, and effective fraction of the weights, in the first batch."""

    tokens_trained = effective_fraction = None

    def on_generation(self, trainer, batch):
        if self.tokens_trained is None:
            valid = batch.mask != 0
            trained = (batch.weights != 0) & (batch.advantages != 0).unsqueeze(1) & valid
            self.tokens_trained = (trained.sum() / valid.sum()).item()
            self.effective_fraction = credit_effect(batch.weights, valid, batch.advantages)["effective_fraction"]


@contextmanager
def count_head_rows():
    """Rows that TRL's fused head is given, by whomever."""
    rows = {"forward": 0, "backward": 0}
    forward, backward = ChunkedLogProbFunction.forward, ChunkedLogProbFunction.backward

    def counted_forward(ctx, hidden, *arguments):
        rows["forward"] += len(hidden)
        return forward(ctx, hidden, *arguments)

    def counted_backward(ctx, *gradients):
        rows["backward"] += len(ctx.saved_tensors[0])
        return backward(ctx, *gradients)

    ChunkedLogProbFunction.forward = staticmethod(counted_forward)
    ChunkedLogProbFunction.backward = staticmethod(counted_backward)
    try:
        yield rows
    finally:
        ChunkedLogProbFunction.forward = staticmethod(forward)
        ChunkedLogProbFunction.backward = staticmethod(backward)


def release(device):
    gc.collect()  # a trainer is a cycle: until it is collected its model stays
    if device == "cuda":
        torch.cuda.empty_cache()


def device_name(device):
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"


@contextmanager
def without_warnings():
    """Without those of the trainer: the table says which savings are off."""
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)

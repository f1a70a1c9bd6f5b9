"""Trainers that `whole_step.py` compares, the generation batch that they all make, and a few steps of one of them."""

import dataclasses
import importlib.util
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from datasets import Dataset

from .arms import BASELINE, VARIANTS, Arm, assemble
from .forced_lengths import ForcedLengths
from .generation import pages_for
from .instruments import PeakMemory
from .phases import Phases, watched
from .workload import GENERATIONS, SHAPES, WORKLOADS, sample_lengths


CONTINUOUS_BATCHING = "TRL, continuous batching"
VLLM = ("TRL, vLLM", "ours, vLLM")
_TRL = (
    BASELINE,
    Arm(CONTINUOUS_BATCHING, is_trl=True, settings={"use_transformers_continuous_batching": True}),
    Arm("TRL, vLLM", is_trl=True),
)
_OURS = (
    VARIANTS["ours"],
    Arm("ours, vLLM"),
    Arm("with reuse_scoring_graph", settings={"reuse_scoring_graph": True}),
    Arm("without compact_generation", settings={"compact_generation": False}),
    Arm("without padding_free", settings={"padding_free": False}),
    VARIANTS["without ordering"],
    VARIANTS["without sparse head"],
    Arm("without skip_inert_compute", settings={"skip_inert_compute": False}),
)
WHOLE_STEP_ARMS = {arm.name: arm for arm in (*_TRL, *_OURS)}


def reason_to_leave_out(arm, device, processes):
    """Why an arm cannot run here, `None` if it can."""
    if arm.name in VLLM and importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; `make test-vllm` has an environment with it"
    if arm.name in VLLM and (processes > 1 or device != "cpu"):
        return "its lengths are forced on one process and a CPU only"
    return None


class GenerationBatch:
    """
    What every trainer generates and is rewarded for: lengths of completions, and groups without a gradient.

    Args:
        workload (`str`): One of `WORKLOADS`.
        device: Device of the model.
    """

    def __init__(self, workload, options, device):
        lengths, inert = WORKLOADS[workload]
        rows, groups = options.groups * GENERATIONS, options.groups
        generator = torch.Generator().manual_seed(0)
        sizes = sample_lengths(rows, options.max_length, lengths, generator)
        # Anywhere, so that two processes do not get all of them on one
        order = torch.randperm(groups, generator=generator).tolist()
        self.inert = set(order[: round(groups * inert)])
        self.forced = ForcedLengths(sizes, GENERATIONS, SHAPES[options.shape][6], device)
        self.num_tokens = sum(sizes)
        self.dataset = Dataset.from_dict(
            {"prompt": [" ".join(f"w{word}" for word in prompt) for prompt in self.forced.prompts]}
        )

    def group_of(self, prompt):
        return int(prompt.split()[0][1:]) - self.forced.first_prompt

    def reward(self, prompts, completion_ids, **kwargs):
        """Alternating in a group; the same in one that is inert. Completions of other lengths are an error."""
        groups = [self.group_of(prompt) for prompt in prompts]
        for start in range(0, len(groups), GENERATIONS):
            found = sorted(len(ids) for ids in completion_ids[start : start + GENERATIONS])
            if found != sorted(self.forced.lengths[groups[start]]):
                raise RuntimeError(
                    f"The completions of group {groups[start]} have {found} tokens and not those they were given: "
                    "there is nothing to compare."
                )
        return [0.0 if group in self.inert else float(row % 2) for row, group in enumerate(groups)]

    def share(self, index, processes):
        """
        Rows of one of several processes that share the work in the best way, as `references.py` takes them.

        Returns:
            `SimpleNamespace`: `prompts`, one for each group, and for each row `groups`, `completions` and `is_live`.
        """
        rows = [(size, group) for group, sizes in enumerate(self.forced.lengths) for size in sizes]
        rows = sorted(rows, reverse=True)[index::processes]
        return SimpleNamespace(
            prompts=self.forced.prompts,
            groups=[group for _, group in rows],
            completions=[range(size) for size, _ in rows],
            is_live=[group not in self.inert for _, group in rows],
        )


def run(arm, batch, options, device, *, measure_memory, processes):
    """
    `options.warm_up` unmeasured and `options.steps` measured steps of an arm.

    Returns:
        `dict`: `seconds` and `processor_seconds` of the phases, and `memory`, `None` if it is not measured.
    """
    phases, memory = Phases(device), PeakMemory(device, SHAPES[options.shape][6])
    settings, model, forced = {}, {}, _hooked
    if arm.name == CONTINUOUS_BATCHING and device == "cpu":
        rows = options.groups * GENERATIONS // processes
        settings["transformers_continuous_batching_config"] = pages_for(rows, options.max_length)
    if arm.name in VLLM:
        from . import vllm_arm

        settings, model, forced = (
            vllm_arm.settings(options),
            {"model": vllm_arm.model_folder(options)},
            vllm_arm.forced_engine,
        )
    trainer = assemble(
        dataclasses.replace(arm, settings={**arm.settings, **settings}),
        options,
        device,
        options.warm_up + options.steps,
        processes=processes,
        wrap=watched(phases, batch.forced.restart),
        reward_funcs=batch.reward,
        train_dataset=batch.dataset,
        **model,
    )
    for callback in (phases, *([memory] * measure_memory)):
        trainer.add_callback(callback)
    with forced(trainer, batch):
        trainer.train()
    return {**phases.medians(options.warm_up), "memory": memory.peak, "memory_with_weights": memory.total}


@contextmanager
def _hooked(trainer, batch):
    hook = trainer.model.register_forward_hook(batch.forced, with_kwargs=True)
    yield
    hook.remove()

"""
Checkpoints that a killed run continues from as if nothing had happened.

TRL 1.16 saves neither the place within a generation batch nor the rollouts of that batch: a run resumed between two
generations generates again and stays out of phase. It also restarts the sampler of prompts: a run resumed in its
second epoch repeats the order of the first.
"""

import json
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import DistributedType, gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .._logging import logger
from ._trl import TrainerMixin
from .context import WithContext


# Settings that determine the rollouts of an unfinished generation batch: their number, order and computed values.
_SETTINGS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "entropy_threshold_scope",
    "loss_denominator",
    "loss_type",
    "beta",
    "temperature",
    "entropy_coef",
    "use_adaptive_entropy",
    "importance_sampling_level",
    "use_vllm",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "skip_inert_compute",
    "padding_free",
    "max_tokens_per_forward",
    "dynamic_sampling",
    "contrast_instruction",
    "objective",
    "partition",
    "length_normalized",
    "balance_reward",
    "max_importance_ratio",
    "mirror_step_size",
    "loop_credit",
    "loop_credit_power",
)


@dataclass
class PromptOrder:
    """
    Place of a run in the order of its prompts.

    Args:
        epochs (`int`): Epochs whose order has been drawn.
    """

    epochs: int = 0

    def state_dict(self) -> dict:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict) -> None:
        self.epochs = state["epochs"]


class ResumableGenerationMixin(WithContext, TrainerMixin):
    """
    What [`ForkingGRPOTrainer`] adds to TRL's checkpoints: one file `forking_state_RANK.pt` per process.

    It holds the step within the generation batch, that batch's rollouts on this process if updates on it are left, the
    metrics since the last log, and the states of the trainer's parts: the number of prompt orders drawn, and of
    prompts drawn by dynamic sampling.
    """

    _prompt_order = PromptOrder()

    def _init_checkpoints(self):
        self._prompt_order = self._resumable["prompt_order"] = PromptOrder()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        [`~transformers.Trainer.train`]; `resume_from_checkpoint=True` takes the newest checkpoint that is complete.

        Raises:
            `ValueError`: if there is no complete checkpoint, or the one named is half-written.
        """
        for state in self._resumable.values():  # a second call of `train` starts anew
            state.load_state_dict(type(state)().state_dict())
        if resume_from_checkpoint:
            resume_from_checkpoint = self._complete_checkpoint(resume_from_checkpoint)
            self.accelerator.print(f"Continuing from {resume_from_checkpoint}.")
            self._load_generation_state(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        if not self.args.save_only_model:
            # Saved first: `trainer_state.json`, written last, then shows that the files of all processes exist.
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._generation_state(), folder / _state_name(self.accelerator.process_index))
            self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _generation_state(self) -> dict:
        step = self._step % (self.args.steps_per_generation * self.num_iterations)
        return {
            "settings": self._generation_settings(),
            "step": step,
            # At the start of a generation batch the old rollouts are no longer needed.
            "buffered_inputs": _to("cpu", self._buffered_inputs) if step else None,
            "states": {name: state.state_dict() for name, state in self._resumable.items()}
            | {"prompt_order": PromptOrder(int(self.state.epoch)).state_dict()},
            "metrics": dict(self._metrics["train"]),
        }

    def _generation_settings(self) -> dict:
        settings = {name: getattr(self.args, name) for name in _SETTINGS}
        chain = None if self.token_credit is None else self.token_credit.chain
        settings["token_credit"] = chain and json.dumps(chain.describe())
        if chain is not None and chain.scheduled:  # the weights depend on the length of the run
            length = (
                f"{self.args.max_steps} steps" if self.args.max_steps > 0 else f"{self.args.num_train_epochs} epochs"
            )
            settings["token_credit"] += f" over {length}"
        return {"processes": self.accelerator.num_processes, **settings}

    def _load_generation_state(self, checkpoint: str) -> None:
        self._step, self._buffered_inputs = 0, None
        path = Path(checkpoint) / _state_name(self.accelerator.process_index)
        if not path.exists():  # saved by fewer processes; the settings report that
            path = path.with_name(_state_name(0))
        if not path.exists():
            logger.warning(
                f"{checkpoint} was not saved by trl_fork: the rollouts it was training on are not in it. The run "
                "continues with a new generation batch."
            )
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in state["states"].items():
            if name in self._resumable:
                self._resumable[name].load_state_dict(part)
        now = self._generation_settings()
        # A setting that the version that saved it did not have is at its default.
        then = {name: getattr(type(self.args), name, None) for name in _SETTINGS} | state["settings"]
        changed = [
            f"{name} was {then.get(name)}, is {now.get(name)}"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        if changed and state["step"]:
            logger.warning(
                f"{checkpoint} was saved within a generation batch by other settings ({'; '.join(changed)}). The "
                "batch is dropped and a new one generated."
            )
        if changed:
            return
        self._step = state["step"]
        self._buffered_inputs = _to(self.accelerator.device, state["buffered_inputs"])
        self._metrics["train"] = defaultdict(list, state["metrics"])

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        for _ in range(self._prompt_order.epochs):
            next(iter(sampler), None)  # draws the order of one epoch
        return sampler

    def _complete_checkpoint(self, wanted: str | Literal[True]) -> str:
        """The checkpoint to resume from, the same on all processes."""
        if wanted is True:
            pattern = f"{PREFIX_CHECKPOINT_DIR}-*"
            found = [
                path for path in Path(self.args.output_dir).glob(pattern) if path.name.rsplit("-", 1)[1].isdigit()
            ]
            found.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
        else:
            found = [Path(wanted)]
        processes = self.accelerator.num_processes
        problems = {str(path): _what_is_missing(path, self.accelerator.process_index, processes) for path in found}
        for others in gather_object([problems]):  # a problem on one process makes the checkpoint unusable
            for path in problems:
                problems[path] = problems[path] or others.get(path, "it is not visible to every process")
        for path in map(str, found):
            states = gather_object([_saved_by_us(Path(path))])
            if len(set(states)) > 1:
                problems[path] = problems[path] or "its forking_state files are not visible to every process"
        complete = [path for path, problem in problems.items() if problem is None]
        incomplete = "; ".join(f"{path}: {problem}" for path, problem in problems.items() if problem is not None)
        if not complete:
            where = f"in {self.args.output_dir}" if wanted is True else f"at {wanted}"
            raise ValueError(
                f"resume_from_checkpoint: there is no complete checkpoint {where}"
                + (f" ({incomplete})." if incomplete else ".")
                + " Name another one, or start again in another output_dir."
            )
        skipped = list(problems)[: list(problems).index(complete[0])]
        if skipped and self.accelerator.is_main_process:
            logger.warning(
                f"Half-written checkpoints are skipped ({incomplete}). Resuming from {complete[0]} instead."
            )
        return complete[0]


def check_model_will_be_saved(accelerator) -> None:
    """
    Refuse a launch whose `save_model` would silently leave shards or nothing instead of a model.

    Raises:
        `ValueError`: naming the setting of the accelerate configuration to change.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        zero = accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ValueError(
                "This DeepSpeed configuration would save no model at the end, only ZeRO shards: set "
                "zero3_save_16bit_model: true in the accelerate file (stage3_gather_16bit_weights_on_model_save in a "
                "DeepSpeed JSON)."
            )
    if accelerator.distributed_type == DistributedType.FSDP:
        kind = str(getattr(accelerator.state.fsdp_plugin, "state_dict_type", ""))
        if "FULL_STATE_DICT" not in kind:
            raise ValueError(
                f"This FSDP configuration would save no model at the end (state dict type {kind}): set "
                "fsdp_state_dict_type: FULL_STATE_DICT in the accelerate file."
            )


def _state_name(rank: int | str) -> str:
    return f"forking_state_{rank}.pt"


def _saved_by_us(checkpoint: Path) -> bool:
    return any(checkpoint.glob(_state_name("*")))


def _what_is_missing(checkpoint: Path, rank: int, processes: int) -> str | None:
    """Reason why this process cannot resume from a checkpoint; `None` if it can."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except FileNotFoundError:
        return "no trainer_state.json"
    except ValueError:
        return "trainer_state.json is cut off"
    if "global_step" not in state:
        return "trainer_state.json names no step"
    own = checkpoint / _state_name(rank)
    if not own.exists() and _saved_by_us(checkpoint):
        other = next(iter(sorted(checkpoint.glob(_state_name("*")))))
        if zipfile.is_zipfile(other):
            settings = torch.load(other, map_location="cpu", weights_only=True, mmap=True)["settings"]
            if settings["processes"] == processes:
                return f"{own.name} is missing"
    files = [own]
    files += [checkpoint / ("rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth")]
    for path in files:  # absent where another number of processes, or stock TRL, has saved
        if path.exists() and not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
    return None


def _to(device, value):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(device, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to(device, item) for item in value]
    return value

"""
What each process of a distributed test runs, under `accelerate launch`:

    accelerate launch … tests/distributed/worker.py OUTPUT_DIR SCENARIO [SCENARIO …]

Every scenario trains a fresh model on fixed rollouts, whose rows are the same however many processes share them. Rank
0 writes `OUTPUT_DIR/SCENARIO/record.json`, a list with what each rank saw, beside the model that `save_model` left.
The initial model is in `OUTPUT_DIR/start`, for the scenario that loads it. A test runs the same scenarios in its
own process, by `run_scenario`, for the single-process side of the comparison.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState
from datasets import concatenate_datasets
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from tests.conftest import (
    NUM_GENERATIONS,
    FixedRollouts,
    SpyTrainer,
    build_looped_model,
    build_model,
    build_tokenizer,
    train,
)
from tests.processes import leave
from trl_fork.credit import preset_names
from trl_fork.trainer.call_names import CallNames
from trl_fork.trainer.callbacks import ForkReportCallback


FSDP = os.environ.get("ACCELERATE_USE_FSDP") == "true"

CONTRAST_INSTRUCTION = "bewrong7"

# `generation` and `micro_batch` count rows over all processes. The other keys are arguments of the trainer.
SCENARIOS = {
    "batch": {"micro_batch": 8},
    "micro_batch": {"micro_batch": 16, "entropy_threshold_scope": "micro_batch"},
    # One micro-batch is the generation batch: then the pool of this scope, too, does not depend on the processes.
    "micro_batch_whole": {"micro_batch": 32, "entropy_threshold_scope": "micro_batch"},
    "local": {"micro_batch": 16, "entropy_threshold_scope": "local"},
    "sequence": {"micro_batch": 16, "entropy_threshold_scope": "sequence"},
    "random": {"micro_batch": 8, "token_selection": "random"},
    "random_micro_batch": {
        "micro_batch": 16,
        "token_selection": "random",
        "entropy_threshold_scope": "micro_batch",
    },
    "position": {
        "micro_batch": 8,
        "token_credit": {"top_fraction": {"fraction": 0.4, "score": "position", "pool": "sequence"}},
    },
    # Another weight at every token, of a draw over all processes.
    "weights": {
        "micro_batch": 8,
        "token_credit": {"random": {"fraction": 0.7}, "tests.credit.own_rules.surprisal": {}},
    },
    "truncated_rank": {"micro_batch": 8, "truncated_prompts": (2, 3)},
    "truncated_rank_micro_batch": {
        "micro_batch": 8,
        "truncated_prompts": (2, 3),
        "entropy_threshold_scope": "micro_batch",
    },
    # A metric counts completions: as many on each process, in passes of few tokens.
    "sequence_level": {
        "micro_batch": 8,
        "importance_sampling_level": "sequence",
        "max_tokens_per_forward": 60,
    },
    "inert_rank": {"micro_batch": 8, "inert_prompts": (2, 3)},
    "inert_rank_micro_batch": {
        "micro_batch": 8,
        "inert_prompts": (2, 3),
        "entropy_threshold_scope": "micro_batch",
    },
    # Twelve rows per rank: the second of three groups is half on one, half on the other.
    "straddling_group": {"generation": 24, "micro_batch": 12},
    # At first all informative groups are on one rank; the last round gives more than are missing.
    "dynamic_sampling": {
        "micro_batch": 8,
        "prompts": 12,
        "inert_prompts": (1, 2, 3, 5, 6, 7, 8, 10),
        "dynamic_sampling": True,
    },
    # Negative prompts move between ranks with their rows, and the trainer makes the prompts itself.
    "contrast": {
        "micro_batch": 8,
        "prompts": 12,
        "inert_prompts": (1, 2, 3, 5, 6, 7, 8, 10),
        "dynamic_sampling": True,
        "own_prompts": False,
        "contrast_instruction": CONTRAST_INSTRUCTION,
        "token_credit": {"random": {"fraction": 0.7}, "tests.credit.own_rules.contrasted": {}},
    },
    "dynamic_sampling_straddling": {
        "generation": 24,
        "micro_batch": 12,
        "prompts": 9,
        "inert_prompts": (0, 2, 3, 5, 6, 8),
        "dynamic_sampling": True,
    },
    "dynamic_sampling_topped_up": {
        "micro_batch": 8,
        "prompts": 12,
        "inert_prompts": (0, 1, 2, 4, 5, 6, 7, 8, 9, 10),
        "dynamic_sampling": True,
        "dynamic_sampling_max_rounds": 3,
        "top_entropy_quantile": 0.22,  # one prompt comes twice: at 0.2 the threshold would fall between its twins
    },
    # Two optimizer steps on each of two generation batches: TRL scores old log-probabilities, and ratios leave 1.
    "several_updates": {
        "prompts": 8,
        "micro_batch": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 0.05,
    },
    # Mirror steps of two roles, which speak in turn, in a group that is half on one process, half on the other. The
    # magnet is the adapter turned off.
    "balance": {
        "generation": 24,
        "micro_batch": 12,
        "lora": True,
        "roles": True,
        "objective": "trajectory_balance",
        "beta": 0.31,
        "mirror_step_size": 0.5,
        "length_normalized": False,
        "loss_denominator": "all",
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
    "evaluation": {
        "micro_batch": 8,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "max_steps": 2,
        "learning_rate": 0.05,
    },
    "lora": {"micro_batch": 8, "lora": True},
    # A layer runs three times in a forward pass, and again in the backward; nothing reads the gate, which is frozen.
    "looped": {"micro_batch": 8, "looped": True, "gradient_checkpointing": True},
    # All loops have a gradient, and so has the gate, which DDP does not see among the outputs.
    "looped_exit": {"micro_batch": 8, "looped": True, "loop_credit": "exit"},
    # Loaded by name, as users do: under ZeRO-3 the weights are split before the trainer sees them.
    "from_disk": {"micro_batch": 8, "from_disk": True},
    # The page needs forward passes of its own, of rows of rank 0 alone, and the second one a scoring pass as well.
    "report": {"micro_batch": 8, "report": True, "log_completions": True},
    "report_micro_batch": {"micro_batch": 8, "report": True, "entropy_threshold_scope": "micro_batch"},
}
# After these the model generates (`samples_of`): one of each kind of model. The others would only repeat it.
SAMPLED = ("batch", "from_disk", "lora", "looped", "looped_exit", "balance")
# Two steps of every preset. A group is half on one process, half on the other.
PRESETS = {
    f"preset_{name}": {
        "generation": 24,
        "prompts": 6,
        "micro_batch": 12,
        "max_steps": 2,
        "learning_rate": 0.05,
        "token_credit": name,
    }
    for name in preset_names()
}
DATA_KEYS = (
    *("generation", "micro_batch", "prompts", "truncated_prompts", "inert_prompts"),
    *("lora", "looped", "from_disk", "report", "roles"),
)
# Random from the start, so that a forward without the adapter would select other tokens.
LORA = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False}


class Recorder(SpyTrainer):
    """Adds losses and weights of training steps, the engine, and the adapter as it was before the first step."""

    def __init__(self, *args, **kwargs):
        self.losses, self.training_weights = [], []
        super().__init__(*args, **kwargs)

    def train(self):
        if hasattr(self.model, "peft_config"):  # not wrapped yet, so that every rank still has it whole
            self.start = {
                name: value.detach().clone() for name, value in get_peft_model_state_dict(self.model).items()
            }
        return super().train()

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.losses.append(loss.item())
        self.training_weights.append(self.weights[-1][: len(self.micro_batches[-1])])
        return loss

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        if len(self.losses) < len(self.micro_batches):  # skipped
            self.losses.append(0.0)
            self.training_weights.append(torch.zeros(0, 0))
        # After a backward: a pass without gradient leaves the outermost parameters of FSDP2 gathered until then.
        self.engine = self.describe(model)
        return loss

    def describe(self, model) -> dict:
        parameters = list(self.model.parameters())
        distributed = torch.distributed.is_initialized()
        return {
            "distributed_type": self.accelerator.distributed_type.value,
            "num_processes": self.accelerator.num_processes,
            "world_size": torch.distributed.get_world_size() if distributed else 1,
            "backend": torch.distributed.get_backend() if distributed else None,
            "wrapper": type(model).__name__,
            "zero_stage": model.zero_optimization_stage() if hasattr(model, "zero_optimization_stage") else None,
            "machine": os.environ.get("GROUP_RANK"),
            "num_parameters": len(parameters),
            # Between its uses ZeRO-3 leaves an empty tensor where a parameter was.
            "num_partitioned": sum(hasattr(p, "ds_id") and p.numel() == 0 for p in parameters),
            "num_dtensors": sum(type(p).__name__ == "DTensor" for p in parameters),
        }


class TrainingRollouts(FixedRollouts):
    """Keeps the generation batches of training only."""

    def __call__(self, prompts, trainer):
        output = super().__call__(prompts, trainer)
        if not trainer.model.training:
            self.generated.pop()
        return output


class RoleRollouts(TrainingRollouts):
    """Two roles speak in turn, each with a KL coefficient; that of the second is the run's."""

    rows_per_episode = 2
    role_betas = (0.12, None)

    def __call__(self, prompts, trainer):
        output = super().__call__(prompts, trainer)
        return output | {"role_beta": [self.role_betas[row % 2] for row in range(len(prompts))]}


def build_rollouts(scenario, tokenizer) -> TrainingRollouts:
    generation = scenario.get("generation", 32)
    kind = RoleRollouts if scenario.get("roles") else TrainingRollouts
    rollouts = kind(tokenizer, prompts=scenario.get("prompts", generation // NUM_GENERATIONS))
    for (text, i), ids in rollouts.completions.items():
        prompt = rollouts.texts.index(text)
        # Short ones in the first half of each generation batch: ranks pad to different lengths.
        if prompt * NUM_GENERATIONS % generation < generation // 2:
            ids[:] = [*ids[:5], tokenizer.eos_token_id]
            rollouts.masks[text, i] = [1] * len(ids)
        if prompt in scenario.get("truncated_prompts", ()):
            ids[-1] = 7
        if prompt in scenario.get("inert_prompts", ()):
            rollouts.rewards[text, i] = 0.7
    return rollouts


def run_scenario(name: str, directory: Path, num_processes: int) -> tuple[Recorder, TrainingRollouts]:
    """Train one scenario on this process, one of `num_processes`, and save the model in `directory`."""
    directory.mkdir(exist_ok=True)
    scenario = (SCENARIOS | PRESETS)[name]
    tokenizer = build_tokenizer()
    rollouts = build_rollouts(scenario, tokenizer)
    generation, micro_batch = scenario.get("generation", 32), scenario["micro_batch"]
    steps = generation // micro_batch
    settings = {
        "per_device_train_batch_size": micro_batch // num_processes,
        "steps_per_generation": steps,
        "gradient_accumulation_steps": steps,
        "mask_truncated_completions": "truncated_prompts" in scenario,
        "shuffle_dataset": False,
        # With it accelerate would leave FSDP out, and train with DDP.
        "use_cpu": not FSDP,
        **{key: value for key, value in scenario.items() if key not in DATA_KEYS},
    }
    if "eval_strategy" in scenario:
        # As many prompts as a batch has rows: of the last batch, accelerate leaves out the losses of rows beyond
        # `len(dataset) % batch`, not knowing that TRL's sampler repeats prompts, so that ranks could go missing.
        settings["eval_dataset"] = concatenate_datasets([rollouts.dataset] * NUM_GENERATIONS)
        settings["per_device_eval_batch_size"] = generation // num_processes
    if scenario.get("lora"):
        settings["peft_config"] = LoraConfig(**LORA, task_type="CAUSAL_LM")
    if scenario.get("report"):
        settings["callbacks"] = [ForkReportCallback(1, 3)]
    model = build_looped_model(tokenizer) if scenario.get("looped") else build_model(tokenizer)
    if scenario.get("from_disk"):
        model = str(directory.parent / "start")
        settings["model_init_kwargs"] = {"dtype": "float32"}
    trainer = train(model, tokenizer, rollouts, directory, trainer_class=Recorder, **settings)
    trainer.save_model(str(directory / "final"))
    if scenario.get("lora") and trainer.accelerator.is_main_process:
        save_file(trainer.start, directory / "start.safetensors")
    return trainer, rollouts


def samples_of(trainer: Recorder) -> list[list[int]]:
    """Completions by the trained model of this rank's share of eight prompts. They end at different places."""
    prompts = [[5 + number] * (2 + number) for number in range(8)]
    share = len(prompts) // trainer.accelerator.num_processes
    first = trainer.accelerator.process_index * share
    trainer.rollouts = None  # the model generates
    trainer.generation_config.eos_token_id = [trainer._tokenizer.eos_token_id, *range(4, 9)]
    found = []
    for gather in (True, False):  # under ZeRO-3, all parameters for the time of generation, or those of one layer
        trainer.args.ds3_gather_for_generation, trainer._turns = gather, CallNames()
        found.append(trainer._generate_single_turn(prompts[first : first + share], None, {}, 1)[0])
        assert trainer._decoding_refused is None, trainer._decoding_refused
    assert found[0] == found[1]
    return found[0]


def record_of(trainer: Recorder, rollouts: TrainingRollouts, sampled: bool) -> dict:
    """What this rank saw, for JSON: generation batches, and every micro-batch with its rows, weights and loss."""
    steps = trainer.args.steps_per_generation
    micro_batches = []
    # With dynamic sampling there is one batch of several rounds.
    num_batches = 1 if trainer.args.dynamic_sampling else len(rollouts.generated)
    for k in range(num_batches * steps):
        rows = trainer.micro_batches[k]
        weights = {row: values.tolist() for row, values in zip(rows, trainer.training_weights[k], strict=True)}
        micro_batches.append({"rows": rows, "weights": weights, "loss": trainer.losses[k]})
    return {
        "engine": trainer.engine,
        "samples": samples_of(trainer) if sampled else None,
        "generated": [[asdict(rollout) for rollout in batch] for batch in rollouts.generated],
        "micro_batches": micro_batches,
        "log_history": trainer.state.log_history,
        "settings": {
            "level": trainer.args.importance_sampling_level,
            "accumulation": trainer.args.gradient_accumulation_steps,
            "steps": steps,
            "scope": trainer.args.entropy_threshold_scope,
            "rule": trainer.args.token_selection,
            "rho": trainer.args.top_entropy_quantile,
            "credit": trainer.args.token_credit,
            "objective": trainer.args.objective,
            "beta": trainer.args.beta,
            "mirror_step_size": trainer.args.mirror_step_size,
            "role_betas": getattr(rollouts, "role_betas", None),
            "loop_credit": trainer.args.loop_credit,
            "learning_rate": trainer.args.learning_rate,
            "seed": trainer.args.seed,
            "dynamic_sampling": trainer.args.dynamic_sampling,
            "groups": trainer.args.generation_batch_size // NUM_GENERATIONS,
        },
    }


def prepare_for_cpu() -> None:
    """
    Let DeepSpeed and FSDP2 start on a machine without GPU. What is tested stays as it is.

    DeepSpeed's CPU backend compiles a shared-memory collective when it starts, a minute of C++ for something that only
    its inference engine calls. accelerate 1.15 enters FSDP only where it has found GPUs or the like: told that gloo on
    the CPU is one of them, it really shards.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    if FSDP:
        PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda state: setattr(state, "device", torch.device("cpu"))


def main(directory: str, *names: str) -> None:
    prepare_for_cpu()
    for name in names:
        output = Path(directory) / name
        trainer, rollouts = run_scenario(name, output, int(os.environ["WORLD_SIZE"]))
        records = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(records, record_of(trainer, rollouts, name in SAMPLED))
        if trainer.accelerator.is_main_process:
            (output / "record.json").write_text(json.dumps(records))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

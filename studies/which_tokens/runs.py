"""One run of the study: the shared warm-up, and a training by the real trainer."""

import random
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.tasks import digit_sums

from . import chain_sum, countdown, reach_target
from .grid import ARMS, Cell
from .probe import Probe
from .settings import (
    EVALUATIONS,
    GRADIENT_SEEDS,
    MAX_COMPLETION_LENGTH,
    NUM_GENERATIONS,
    NUM_TEST,
    SIZES,
    WARM_UP_SEED,
    WARM_UP_STEPS,
    conversation,
    device_settings,
    short,
)


TASK_MODULES = {
    "digit_sums": digit_sums,
    "reach_target": reach_target,
    "chain_sum": chain_sum,  # the last two need reasoning-gym
    "countdown": countdown,
}

# ---------------------------------------------------------------------- the start of every run


def start_path(root: Path, size: str, task: str) -> Path:
    return root / f"{SIZES[size].start or size}-{task}-start"


def warm_up(root: Path, size: str, name: str) -> None:
    """Supervised fine-tuning of random weights on careless demonstrations: the start of every run of a task."""
    task, settings = TASK_MODULES[name], SIZES[size]
    steps = settings.warm_up_factor * WARM_UP_STEPS[name]
    rng = random.Random(WARM_UP_SEED)
    tokenizer = task.make_tokenizer()
    problems = task.training_problems(64 * steps, rng)
    demonstrations = [
        {
            "prompt": conversation(task, problem),
            "completion": [{"role": "assistant", "content": task.demonstration(problem, rng)}],
        }
        for problem in problems
    ]
    path = start_path(root, size, name)
    trainer = SFTTrainer(
        model=digit_sums.make_model(tokenizer, WARM_UP_SEED, settings.shape),
        args=SFTConfig(
            output_dir=str(path),
            max_steps=steps,
            per_device_train_batch_size=64,
            learning_rate=settings.warm_up_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            adam_beta2=0.98,
            completion_only_loss=True,
            seed=WARM_UP_SEED,
            logging_strategy="no",
            save_strategy="no",
            **device_settings(),
        ),
        train_dataset=Dataset.from_list(demonstrations),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(path))


def measure_start(root: Path, size: str, name: str) -> dict:
    """What every run of a task is compared with: the last evaluation of a run, of the model before training."""
    task, start = TASK_MODULES[name], start_path(root, size, name)
    torch.set_num_threads(1)
    model = Qwen3ForCausalLM.from_pretrained(start).eval()
    cell = Cell(size, name, "all", 1, 0.0, 0)
    test = task.held_out_problems(NUM_TEST, random.Random(WARM_UP_SEED))
    probe = Probe(cell, task, AutoTokenizer.from_pretrained(start), test, model, every=1, takes_gradient_apart=False)
    return probe.final(model)


# ---------------------------------------------------------------------- a run


def training_settings(size: str, task: str, learning_rate: float, seed: int) -> dict:
    """What every arm of a study trains with: the paper's loss and clipping, at sizes of a CPU."""
    return {
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "num_generations": NUM_GENERATIONS,
        "temperature": 1.0,
        "max_completion_length": MAX_COMPLETION_LENGTH[task],
        "per_device_train_batch_size": SIZES[size].prompts_per_update * NUM_GENERATIONS,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 4,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        # Logged, never clipped: at 1.0 it would act on the arms that divide by the selected tokens, whose gradients
        # are several times larger, and not on the others.
        "max_grad_norm": 1e9,
        "seed": seed,
        "logging_steps": 1,
        "save_strategy": "no",
        **device_settings(),
    }


def configuration(cell: Cell, output_dir: str = "outputs/study") -> ForkingGRPOConfig:
    """What a run trains with: the paper's objective and clipping, and of `ARMS` what its arm is about."""
    return ForkingGRPOConfig(
        output_dir=output_dir,
        **ARMS[cell.arm],
        **training_settings(cell.size, cell.task, cell.learning_rate, cell.seed),
        beta=0.0,
        # The results that are published were sampled so; other random numbers are other runs.
        compact_generation=False,
        steps_per_generation=cell.updates_per_batch,
        max_steps=SIZES[cell.size].updates,
    )


def make_trainer(task, model, tokenizer, args: ForkingGRPOConfig, problems: list, probe) -> ForkingGRPOTrainer:
    """The trainer of a run: rewards are right answers, and the console stays free for the line of each run."""

    def correct(prompts, completions, problem, **_) -> list[float]:
        return [float(task.is_correct(tuple(p), c[0]["content"])) for p, c in zip(problem, completions, strict=True)]

    trainer = ForkingGRPOTrainer(
        model=model,
        reward_funcs=correct,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": conversation(task, p), "problem": list(p)} for p in problems]),
        processing_class=tokenizer,
        callbacks=[probe],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def run(cell: Cell, root: Path, take_gradient_apart: bool = False) -> dict:
    """
    Train and measure one cell.

    Args:
        cell ([`Cell`]): The run.
        root (`Path`): Where the warmed-up models are.
        take_gradient_apart (`bool`, *optional*, defaults to `False`):
            Whether to do so where the cell trains on all tokens; it takes as long as the run.

    Returns:
        `dict`: one row of results: the cell, held-out accuracy and pass@8 at the end, and curves over training.
    """
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # several runs stand side by side
    started, processor = time.perf_counter(), time.process_time()
    task, settings = TASK_MODULES[cell.task], SIZES[cell.size]
    start = start_path(root, cell.size, cell.task)
    tokenizer = AutoTokenizer.from_pretrained(start)
    # A stream for the problems of this seed: the same for every arm and regime, in an order that the seed gives too.
    problems = task.training_problems(settings.prompts_per_update * settings.updates, random.Random(cell.seed))
    test = task.held_out_problems(NUM_TEST, random.Random(WARM_UP_SEED))
    model = Qwen3ForCausalLM.from_pretrained(start)
    probe = Probe(
        cell,
        task,
        tokenizer,
        test,
        Qwen3ForCausalLM.from_pretrained(start).eval(),
        every=settings.updates // EVALUATIONS,
        takes_gradient_apart=take_gradient_apart and cell.arm == "all" and cell.seed in GRADIENT_SEEDS,
    )
    args = configuration(cell, str(root / "runs" / str(cell).replace(" ", "-")))
    trainer = make_trainer(task, model, tokenizer, args, problems, probe)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    curves = {
        "reward": "reward",
        "length": "completions/mean_length",
        "grad_norm": "grad_norm",
        "selected_fraction": "forking/selected_fraction",
    }
    return {
        **asdict(cell),
        **probe.final(trainer.model),
        "evaluations": probe.evaluations,
        "gradients": probe.gradients,
        "training": {name: [short(entry.get(key)) for entry in log] for name, key in curves.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }

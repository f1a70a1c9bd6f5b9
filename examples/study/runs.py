"""One run of the study: the shared warm-up, a training by the real trainer, and what is measured on the way."""

import importlib
import random
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import digit_sums
import numpy as np
import torch
from datasets import Dataset
from gradients import gradient_shares
from grid import ARMS, Cell, as_row
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback, Qwen3ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.analysis import change_by_percentile, overlap, percentile_trace
from trl_fork.entropy import completion_entropies


@dataclass(frozen=True)
class Size:
    """
    Model and amount of work.

    Args:
        shape (`dict`): Of the Qwen3, see [`digit_sums.make_model`].
        warm_up_factor (`int`): Of `WARM_UP_STEPS`.
        warm_up_learning_rate (`float`): Their peak learning rate.
        prompts_per_update (`int`): With 8 rollouts each.
        updates (`int`): Optimizer steps of every run; a multiple of 16.
    """

    shape: dict[str, int]
    warm_up_factor: int = 1
    warm_up_learning_rate: float = 3e-3
    prompts_per_update: int = 8
    updates: int = 48


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
WARM_UP_STEPS = {"digit_sums": 300, "reach_target": 600}  # of supervised fine-tuning, with 64 demonstrations each
NUM_GENERATIONS = 8
NUM_TEST = 256  # held-out problems, the same for every run
SAMPLES_PER_PROBLEM = 8  # of the last evaluation
EVALUATIONS = 6  # during training, at equal distances; and one before it
GRADIENT_SEEDS = (0, 1)  # of the arm on all tokens, whose gradient is taken apart
MAX_COMPLETION_LENGTH = {"digit_sums": 56, "reach_target": 56}  # tokens; the longest demonstration fits
WARM_UP_SEED = 7


# ---------------------------------------------------------------------- the start of every run


def start_path(root: Path, size: str, task: str) -> Path:
    return root / f"{size}-{task}-start"


def warm_up(root: Path, size: str, name: str) -> None:
    """Supervised fine-tuning of random weights on careless demonstrations: the start of every run of a task."""
    task, settings = importlib.import_module(name), SIZES[size]
    steps = settings.warm_up_factor * WARM_UP_STEPS[name]
    rng = random.Random(WARM_UP_SEED)
    tokenizer = task.make_tokenizer()
    problems = task.training_problems(64 * steps, rng)
    demonstrations = [
        {
            "prompt": _conversation(task, problem),
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
            **_device_settings(),
        ),
        train_dataset=Dataset.from_list(demonstrations),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(path))


def _conversation(task, problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.question(problem)}]


def _device_settings() -> dict:
    # float32 throughout, on a GPU too: the differences between arms are not to be those of rounding.
    return {
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


# ---------------------------------------------------------------------- a run


def configuration(cell: Cell, output_dir: str = "outputs/study") -> ForkingGRPOConfig:
    """What a run trains with: the paper's objective and clipping, and of `ARMS` what its arm is about."""
    settings = SIZES[cell.size]
    return ForkingGRPOConfig(
        output_dir=output_dir,
        **ARMS[cell.arm],
        loss_type="dapo",
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        num_generations=NUM_GENERATIONS,
        temperature=1.0,
        max_completion_length=MAX_COMPLETION_LENGTH[cell.task],
        per_device_train_batch_size=settings.prompts_per_update * NUM_GENERATIONS,
        steps_per_generation=cell.updates_per_batch,
        max_steps=settings.updates,
        learning_rate=cell.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=4,
        adam_beta2=0.95,
        weight_decay=0.0,
        # Logged, never clipped: at 1.0 it would act on the arms that divide by the selected tokens, whose gradients
        # are several times larger, and not on the others.
        max_grad_norm=1e9,
        seed=cell.seed,
        logging_steps=1,
        save_strategy="no",
        **_device_settings(),
    )


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
    task, settings = importlib.import_module(cell.task), SIZES[cell.size]
    start = start_path(root, cell.size, cell.task)
    tokenizer = AutoTokenizer.from_pretrained(start)
    # A stream for the problems of this seed: the same for every arm and regime, in an order that the seed gives too.
    problems = task.training_problems(settings.prompts_per_update * settings.updates, random.Random(cell.seed))
    test = task.held_out_problems(NUM_TEST, random.Random(WARM_UP_SEED))
    model = Qwen3ForCausalLM.from_pretrained(start)

    def correct(prompts, completions, problem, **_) -> list[float]:
        return [float(task.is_correct(tuple(p), c[0]["content"])) for p, c in zip(problem, completions, strict=True)]

    probe = Probe(cell, task, tokenizer, test, Qwen3ForCausalLM.from_pretrained(start).eval())
    probe.takes_gradient_apart = take_gradient_apart and cell.arm == "all" and cell.seed in GRADIENT_SEEDS
    trainer = ForkingGRPOTrainer(
        model=model,
        reward_funcs=correct,
        args=configuration(cell, str(root / "runs" / str(cell).replace(" ", "-"))),
        train_dataset=Dataset.from_list([{"prompt": _conversation(task, p), "problem": list(p)} for p in problems]),
        processing_class=tokenizer,
        callbacks=[probe],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    curves = {
        "reward": "reward",
        "length": "completions/mean_length",
        "grad_norm": "grad_norm",
        "selected_fraction": "forking/selected_fraction",
    }
    return {
        **as_row(cell),
        **probe.final(trainer.model),
        "evaluations": probe.evaluations,
        "gradients": probe.gradients,
        "training": {name: [_short(entry.get(key)) for entry in log] for name, key in curves.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }


class Probe(TrainerCallback):
    """
    Measures the model on held-out problems while it trains, from random numbers of its own.

    Args:
        cell ([`Cell`]): The run.
        task (module): Its task.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        problems (`list[tuple]`): Held-out problems.
        reference ([`~transformers.PreTrainedModel`]): The model before training.
    """

    def __init__(self, cell: Cell, task, tokenizer, problems, reference):
        self.cell, self.task, self.tokenizer, self.problems, self.reference = (
            cell,
            task,
            tokenizer,
            problems,
            reference,
        )
        self.takes_gradient_apart = False
        self.every = SIZES[cell.size].updates // EVALUATIONS
        self.evaluations: list[dict] = []
        self.gradients: list[dict] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.reference.to(model.device)
        self.measure(0, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            self.measure(state.global_step, model)

    def measure(self, step: int, model) -> None:
        rollouts = self.sample(model, samples=1, seed=1000 * self.cell.seed + step)
        self.evaluations.append(
            {
                "step": step,
                "accuracy": _short(rollouts.correct.mean()),
                "length": _short(rollouts.lengths.mean()),
                "entropy": _short(rollouts.entropies.mean()),
                "entropy_percentiles": [_short(value) for value in percentile_trace(rollouts.entropies)],
            }
        )
        if self.takes_gradient_apart:
            # Two batches: how far the gradient of one agrees with that of the other is the measure of its noise.
            batches = [
                self.sample(model, NUM_GENERATIONS, seed=1000 * self.cell.seed + step + 1 + half, part=half)
                for half in (0, 1)
            ]
            shares = gradient_shares(model, [batch.as_group_batch(NUM_GENERATIONS) for batch in batches], step)
            self.gradients.append({"step": step, **{name: _short(value) for name, value in shares.items()}})

    def final(self, model) -> dict:
        """The last evaluation, with several samples per problem, and what became of the entropies."""
        rollouts = self.sample(model, SAMPLES_PER_PROBLEM, seed=self.cell.seed)
        before = rollouts.scored_by(self.reference)
        by_problem = rollouts.correct.reshape(NUM_TEST, SAMPLES_PER_PROBLEM)
        greedy = self.sample(model, samples=1, seed=0, do_sample=False)
        return {
            "accuracy": _short(by_problem.mean()),
            f"pass@{SAMPLES_PER_PROBLEM}": _short(by_problem.any(1).mean()),
            "greedy_accuracy": _short(greedy.correct.mean()),
            "length": _short(rollouts.lengths.mean()),
            "entropy": _short(rollouts.entropies.mean()),
            "overlap": {k: _short(v) for k, v in overlap(before, rollouts.entropies, rollouts.lengths).items()},
            "entropy_change": [_short(b["mean_change"]) for b in change_by_percentile(before, rollouts.entropies)],
        }

    @torch.no_grad()
    def sample(self, model, samples: int, seed: int, part: int | None = None, do_sample: bool = True) -> "Rollouts":
        """Answers to the held-out problems, or to one eighth of them; `samples` to each, one after the other."""
        problems = self.problems if part is None else self.problems[part * NUM_TEST // 8 : (part + 1) * NUM_TEST // 8]
        problems = [problem for problem in problems for _ in range(samples)]
        inputs = self.tokenizer.apply_chat_template(
            [_conversation(self.task, problem) for problem in problems],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        was_training = model.training
        model.eval()
        with torch.random.fork_rng():  # the run's own sampling is not to depend on what is measured
            torch.manual_seed(seed)
            output = model.generate(
                **inputs,
                max_new_tokens=MAX_COMPLETION_LENGTH[self.cell.task],
                **(sampling if do_sample else {"do_sample": False}),
            )
        length = inputs["input_ids"].shape[1]
        completion_ids = output[:, length:]
        mask = completion_ids != self.tokenizer.pad_token_id
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        correct = [self.task.is_correct(problem, text) for problem, text in zip(problems, texts, strict=True)]
        rollouts = Rollouts(output, torch.cat([inputs["attention_mask"], mask.long()], 1), mask, np.array(correct))
        rollouts.entropies = rollouts.scored_by(model)
        model.train(was_training)
        return rollouts


@dataclass
class Rollouts:
    """
    Completions of one model.

    Args:
        input_ids, attention_mask (`torch.Tensor` of shape `(batch, prompt + completion)`): What was read and written.
        mask (`torch.Tensor` of shape `(batch, completion)`): True at completion tokens.
        correct (`np.ndarray` of shape `(batch,)`): Whether the answer is right.
        entropies (`np.ndarray` of shape `(num_tokens,)`): In nats, one completion after the other.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    correct: np.ndarray
    entropies: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        return self.mask.sum(1).cpu().numpy()

    def scored_by(self, model) -> np.ndarray:
        chunks = zip(self.input_ids.split(512), self.attention_mask.split(512), self.mask.split(512), strict=True)
        scored = [completion_entropies(model, ids, attention, mask.shape[1])[mask] for ids, attention, mask in chunks]
        return torch.cat(scored).cpu().numpy()

    def as_group_batch(self, num_generations: int) -> dict[str, torch.Tensor]:
        """For [`gradients.gradient_shares`]: the advantages of GRPO, and the entropies on their tokens."""
        rewards = torch.tensor(self.correct, dtype=torch.float32, device=self.mask.device).view(-1, num_generations)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        entropies = torch.zeros(self.mask.shape, device=self.mask.device)
        entropies[self.mask] = torch.from_numpy(self.entropies).to(entropies)
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "mask": self.mask,
            "advantages": advantages.flatten(),
            "entropies": entropies,
        }


def _short(value) -> float | None:
    """Five significant digits: the file of results is read by people, and kept in the repository."""
    return None if value is None else float(f"{float(value):.5g}")

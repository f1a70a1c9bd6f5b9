"""One run: the shared warm-up of the other study, the offline partition, a training by the real trainer."""

import json
import random
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback, Qwen3ForCausalLM, TrainerCallback

from studies.which_tokens import reach_target
from studies.which_tokens.runs import start_path, training_settings
from studies.which_tokens.settings import MAX_COMPLETION_LENGTH, SIZES, WARM_UP_SEED, conversation, short
from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer
from trl_fork.generation.engines import Sample, TransformersEngine
from trl_fork.objectives import proposal_log_partition

from .plan import ARMS, EVALUATIONS, NUM_SAMPLES, NUM_TEST, PARTITION_SAMPLES, TASK, UPDATES, Cell
from .strategies import measures


SIZE = "tiny"
Problem = tuple[int, ...]


def training_problems(seed: int) -> list[Problem]:
    """Problems of a seed: the same for every arm, in an order that the seed gives too."""
    return reach_target.training_problems(SIZES[SIZE].prompts_per_update * UPDATES, random.Random(seed))


def test_problems() -> list[Problem]:
    return reach_target.held_out_problems(NUM_TEST, random.Random(WARM_UP_SEED))


class Sampler:
    """Samples of problems at temperature 1, from random numbers of its own."""

    def __init__(self, tokenizer, num_samples: int):
        self.tokenizer, self.num_samples = tokenizer, num_samples

    def __call__(self, model, problems: list[Problem], seed: int) -> list[list[Sample]]:
        was_training = model.training
        engine = TransformersEngine(model, self.tokenizer, max_new_tokens=MAX_COMPLETION_LENGTH[TASK])
        prompts = [
            self.tokenizer.apply_chat_template(
                conversation(reach_target, problem), add_generation_prompt=True, return_dict=False
            )
            for problem in problems
        ]
        numbers = random.Random(seed)
        repeated = [ids for ids in prompts for _ in range(self.num_samples)]
        samples = engine.generate(repeated, [numbers.getrandbits(32) for _ in repeated])
        model.train(was_training)
        return [samples[i : i + self.num_samples] for i in range(0, len(samples), self.num_samples)]


class Probe(TrainerCallback):
    """Measures the model on held-out problems while it trains."""

    def __init__(self, sampler: Sampler, seed: int):
        self.sampler, self.seed, self.problems = sampler, seed, test_problems()
        self.evaluations: list[dict] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in EVALUATIONS:
            self.measure(state.global_step, model)

    def measure(self, step: int, model) -> None:
        samples = self.sampler(model, self.problems, seed=1000 * self.seed + step)
        found = measures(self.problems, [[sample.text for sample in row] for row in samples])
        lengths = [sample.length for row in samples for sample in row]
        found["length"] = sum(lengths) / len(lengths)
        self.evaluations.append({"step": step, **{name: short(value) for name, value in found.items()}})


def load_start(root: Path):
    path = start_path(root, SIZE, TASK)
    return Qwen3ForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def measure_start(root: Path) -> dict:
    """What the warmed-up model can do: the start of every run, and its reference."""
    torch.set_num_threads(1)
    model, tokenizer = load_start(root)
    probe = Probe(Sampler(tokenizer, NUM_SAMPLES), seed=0)
    probe.measure(0, model)
    return probe.evaluations[0]


# ---------------------------------------------------------------------- the offline partition


def sample_partition(root: Path, seed: int) -> dict[Problem, dict]:
    """
    What the reference makes of the training problems of a seed, read from `root` where it is there.

    Returns:
        `dict[tuple, dict]`: by problem `"rewards"` and `"lengths"` of `PARTITION_SAMPLES` samples.
    """
    path = root / f"partition-seed{seed}.json"
    if not path.exists():
        model, tokenizer = load_start(root)
        problems = list(dict.fromkeys(training_problems(seed)))
        drawn = Sampler(tokenizer, PARTITION_SAMPLES)(model, problems, seed=seed + 500_000)
        rows = [
            {
                "problem": problem,
                "rewards": [float(reach_target.is_correct(problem, sample.text)) for sample in samples],
                "lengths": [sample.length for sample in samples],
            }
            for problem, samples in zip(problems, drawn, strict=True)
        ]
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rows))
        part.replace(path)
    return {tuple(row["problem"]): row for row in json.loads(path.read_text())}


def log_partitions(drawn: dict[Problem, dict], beta: float) -> dict[Problem, float]:
    """The constant of the length-normalised loss of each problem: the reference itself is the proposal model."""
    rewards, lengths = (
        torch.tensor([row[name] for row in drawn.values()], dtype=torch.float64) for name in ("rewards", "lengths")
    )
    same = torch.zeros_like(rewards)
    constants = proposal_log_partition(same, same, rewards, beta, lengths)
    return dict(zip(drawn, constants.tolist(), strict=True))


# ---------------------------------------------------------------------- a run


def configuration(cell: Cell, output_dir: str = "outputs/study") -> ForkingGRPOConfig:
    return ForkingGRPOConfig(
        output_dir=output_dir,
        **ARMS[cell.arm],
        **training_settings(SIZE, TASK, cell.learning_rate, cell.seed),
        beta=cell.beta,
        compact_generation=True,
        max_steps=UPDATES,
    )


def training_data(cell: Cell, root: Path) -> Dataset:
    problems = training_problems(cell.seed)
    rows = [{"prompt": conversation(reach_target, problem), "problem": list(problem)} for problem in problems]
    if ARMS[cell.arm].get("partition") == "offline":
        constants = log_partitions(sample_partition(root, cell.seed), cell.beta)
        rows = [row | {"log_partition": constants[tuple(row["problem"])]} for row in rows]
    return Dataset.from_list(rows)


def run(cell: Cell, root: Path) -> dict:
    """
    Train and measure one cell.

    Args:
        cell ([`Cell`]): The run.
        root (`Path`): Where the warmed-up model is, and the samples of the offline partition.

    Returns:
        `dict`: one line of results: the cell, the last evaluation, earlier ones, and curves over training.
    """
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # several runs stand side by side
    processor = time.process_time()
    model, tokenizer = load_start(root)

    def correct(prompts, completions, problem, **_) -> list[float]:
        return [
            float(reach_target.is_correct(tuple(p), c[0]["content"]))
            for p, c in zip(problem, completions, strict=True)
        ]

    probe = Probe(Sampler(tokenizer, NUM_SAMPLES), cell.seed)
    trainer = ForkingGRPOTrainer(
        model=model,
        reward_funcs=correct,
        args=configuration(cell, str(root / "runs" / str(cell).replace(" ", "-"))),
        train_dataset=training_data(cell, root),
        processing_class=tokenizer,
        callbacks=[probe],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    *earlier, last = probe.evaluations
    curves = {"reward": "reward", "entropy": "entropy", "length": "completions/mean_length", "grad_norm": "grad_norm"}
    quarter = len(log) // 4
    return {
        **asdict(cell),
        **{name: value for name, value in last.items() if name != "step"},
        "evaluations": earlier,
        # Means over quarters of the training
        "training": {
            name: [short(_mean(entry.get(key) for entry in log[i * quarter : (i + 1) * quarter])) for i in range(4)]
            for name, key in curves.items()
        },
        "processor_seconds": round(time.process_time() - processor, 1),
    }


def _mean(values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

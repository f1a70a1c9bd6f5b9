"""One run: the shared warm-up of the first study, and a training by the real trainer."""

import random
import time
import warnings
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM, TrainerCallback

from studies.which_tokens.runs import TASK_MODULES, make_trainer, start_path, training_settings
from studies.which_tokens.settings import (
    MAX_COMPLETION_LENGTH,
    NUM_GENERATIONS,
    SIZES,
    WARM_UP_SEED,
    conversation,
    short,
)
from trl_fork import ForkingGRPOConfig
from trl_fork.entropy import completion_entropies
from trl_fork.generation.engines import Sample, TransformersEngine

from .plan import (
    ARMS,
    CURVE_PROBLEMS,
    EVALUATIONS,
    NUM_SAMPLES,
    NUM_TEST,
    SIZE,
    UPDATES,
    Cell,
)


Problem = tuple[int, ...]
# What is kept of the log, by the name in a line of results.
CURVES = {
    "reward": "reward",
    "length": "completions/mean_length",
    "grad_norm": "grad_norm",
    "selected_fraction": "forking/selected_fraction",
    "effective_fraction": "credit/effective_fraction",
}
NUM_POINTS = 12  # of each curve: means over four updates


@cache  # the same in every run of a process
def test_problems(task: str) -> list[Problem]:
    """Held-out problems, the same for every run of a task."""
    return TASK_MODULES[task].held_out_problems(NUM_TEST, random.Random(WARM_UP_SEED))


def training_problems(cell: Cell) -> list[Problem]:
    """
    Problems of a seed: the same for every arm and regime. A larger batch takes more of them: its first ones are those
    of the others.
    """
    count = SIZES[SIZE].prompts_per_update * cell.batch_factor * UPDATES
    return TASK_MODULES[cell.task].training_problems(count, random.Random(cell.seed))


class Sampler:
    """Samples of problems at temperature 1, from random numbers of its own."""

    def __init__(self, task: str, tokenizer):
        self.task, self.tokenizer = task, tokenizer

    def prompts(self, problems: list[Problem]) -> list[list[int]]:
        task = TASK_MODULES[self.task]
        return [
            self.tokenizer.apply_chat_template(conversation(task, each), add_generation_prompt=True, return_dict=False)
            for each in problems
        ]

    def __call__(self, model, problems: list[Problem], num_samples: int, seed: int) -> list[list[Sample]]:
        """`num_samples` for each problem."""
        was_training = model.training
        engine = TransformersEngine(model, self.tokenizer, max_new_tokens=MAX_COMPLETION_LENGTH[self.task])
        numbers = random.Random(seed)
        repeated = [ids for ids in self.prompts(problems) for _ in range(num_samples)]
        samples = engine.generate(repeated, [numbers.getrandbits(32) for _ in repeated])
        model.train(was_training)
        return [samples[i : i + num_samples] for i in range(0, len(samples), num_samples)]

    @torch.no_grad()
    def entropy(self, model, problems: list[Problem], samples: list[Sample]) -> float:
        """Mean entropy of the tokens of one sample per problem, in nats."""
        prompts = self.prompts(problems)
        width, length = max(map(len, prompts)), max(sample.length for sample in samples)
        ids = torch.full((len(problems), width + length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
            tokens = torch.tensor([*prompt, *sample.ids])
            place = slice(width - len(prompt), width + sample.length)
            ids[row, place], mask[row, place] = tokens, 1
        was_training = model.training
        entropies = completion_entropies(model.eval(), ids, mask, length)
        model.train(was_training)
        return float(entropies[mask[:, width:].bool()].mean())


class Probe(TrainerCallback):
    """Measures the model on held-out problems while it trains, and at the end."""

    def __init__(self, task: str, tokenizer, seed: int):
        self.task, self.seed, self.sampler = task, seed, Sampler(task, tokenizer)
        self.evaluations: list[dict] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in EVALUATIONS:
            self.measure(model, state.global_step)

    def measure(self, model, step: int) -> None:
        """Accuracy and entropy on some of the problems, one sample each."""
        found = self._sample(model, CURVE_PROBLEMS, 1, step)
        self.evaluations.append({"step": step, "accuracy": found["accuracy"], "entropy": found["entropy"]})

    def final(self, model) -> dict:
        """What a run is judged by: all problems, with several samples each."""
        return self._sample(model, NUM_TEST, NUM_SAMPLES, UPDATES)

    def _sample(self, model, num_problems: int, num_samples: int, step: int) -> dict:
        problems = test_problems(self.task)[:num_problems]
        samples = self.sampler(model, problems, num_samples, seed=1000 * self.seed + step)
        is_correct = TASK_MODULES[self.task].is_correct
        correct = torch.tensor(
            [
                [float(is_correct(problem, sample.text)) for sample in row]
                for problem, row in zip(problems, samples, strict=True)
            ]
        )
        lengths = torch.tensor([[float(sample.length) for sample in row] for row in samples])
        return {
            "accuracy": short(correct.mean()),
            f"pass@{num_samples}": short(correct.amax(1).mean()),
            "length": short(lengths.mean()),
            # Of held-out samples: where entropies choose no tokens, those of rollouts are not computed.
            "entropy": short(self.sampler.entropy(model, problems, [row[0] for row in samples])),
        }


def load_start(root: Path, task: str):
    """The warmed-up model of a task, and its tokenizer."""
    path = start_path(root, SIZE, task)
    return Qwen3ForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def measure_start(root: Path, task: str) -> dict:
    """What a warmed-up model can do: the start of every run of its task."""
    torch.set_num_threads(1)
    model, tokenizer = load_start(root, task)
    return Probe(task, tokenizer, seed=0).final(model)


def configuration(cell: Cell, output_dir: str = "outputs/study") -> ForkingGRPOConfig:
    """What a run trains with: the settings of the first study, and of `ARMS` what its arm is about."""
    settings = training_settings(SIZE, cell.task, cell.learning_rate, cell.seed)
    return ForkingGRPOConfig(
        output_dir=output_dir,
        **ARMS[cell.arm],
        **settings,
        beta=0.0,
        compact_generation=True,
        # A larger batch goes through the model in parts of the same size.
        gradient_accumulation_steps=cell.batch_factor,
        steps_per_generation=cell.updates_per_batch * cell.batch_factor,
        max_steps=UPDATES,
    )


def run(cell: Cell, root: Path, commit: str) -> dict:
    """
    Train and measure one cell.

    Args:
        cell ([`Cell`]): The run.
        root (`Path`): Where the warmed-up models are.
        commit (`str`): Of the code, for the line of results.

    Returns:
        `dict`: one line of results: the cell, the last evaluation, earlier ones, and curves over training.
    """
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # several runs stand side by side
    task = TASK_MODULES[cell.task]
    problems, _ = training_problems(cell), test_problems(cell.task)  # once per process for some tasks: not counted
    started, processor = time.perf_counter(), time.process_time()
    model, tokenizer = load_start(root, cell.task)
    probe = Probe(cell.task, tokenizer, cell.seed)
    args = configuration(cell, str(root / "runs" / str(cell).replace(" ", "-")))
    trainer = make_trainer(task, model, tokenizer, args, problems, probe)
    trainer.train()
    trained = time.process_time()
    last = probe.final(trainer.model)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    rollouts = SIZES[SIZE].prompts_per_update * NUM_GENERATIONS * cell.batch_factor
    return {
        **asdict(cell),
        **last,
        "evaluations": probe.evaluations,
        "training": {name: curve(log, key) for name, key in CURVES.items()},
        "tokens": round(rollouts * sum(filled(log, "completions/mean_length"))),
        "tokens_with_gradient": round(rollouts * sum(tokens_of(log))),
        "gradient_norm_max": short(max(entry["grad_norm"] for entry in log)),
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "training_seconds": round(trained - processor, 1),  # of the processor, earlier evaluations included
        "commit": commit,
    }


def curve(log: list[dict], key: str) -> list[float | None]:
    """Means of a metric over equal parts of the training; what holds for a generation batch is logged once for it."""
    values = filled(log, key)
    size = len(values) // NUM_POINTS
    return [
        None if None in part else short(sum(part) / size)
        for part in (values[i * size : (i + 1) * size] for i in range(NUM_POINTS))
    ]


def filled(log: list[dict], key: str) -> list[float | None]:
    """A metric at every update; where it was not logged, the value before."""
    values, last = [], None
    for entry in log:
        last = entry.get(key, last)
        values.append(last)
    return values


def tokens_of(log: list[dict]) -> list[float]:
    """By update the mean number of tokens of a completion that have a weight."""
    fractions = [1.0 if value is None else value for value in filled(log, "forking/selected_fraction")]
    return [length * part for length, part in zip(filled(log, "completions/mean_length"), fractions, strict=True)]

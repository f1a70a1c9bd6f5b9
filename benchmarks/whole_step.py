"""
Where the time of a whole RL step goes: generation with transformers' `generate`, scoring, training.

    python -m benchmarks.whole_step                         # a tiny model on the CPU, minutes
    python -m benchmarks.whole_step --shape qwen3-0.6b      # random weights on a GPU, bf16

`GRPOTrainer` with its own `top_entropy_quantile` and `ForkingGRPOTrainer` take the same steps: they generate the same
completions, of long-tailed lengths (lognormal, sigma 0.8, a median of an eighth of the longest), and train on them
with a learning rate of zero. The savings touch scoring and training, not generation. On the CPU times are processor
seconds, which other work on the machine hardly changes. Decoding is bound by arithmetic there and by memory bandwidth
on a GPU: the shares are those of the machine they were measured on. The first step of each trainer is not measured.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer

from .generation import PROMPT, SHAPES, ForcedLengths, build_model, build_tokenizer, sample_lengths
from .instruments import run_settings


RHO, GENERATIONS = 0.2, 8
COLUMNS = "{:<6} {:>10} {:>17} {:>17} {:>17} {:>10} {:>14}"


def timed(base):
    """A trainer that keeps the seconds of each optimizer step: the whole of it, generation, and scoring."""

    class Timed(base):
        def __init__(self, *args, **kwargs):
            self.steps = []
            super().__init__(*args, **kwargs)

        @contextmanager
        def clock(self, phase):
            start = self.now()
            yield
            self.steps[-1][phase] += self.now() - start

        def now(self):
            if self.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
                return time.perf_counter()
            return time.process_time()

        def get_batch_samples(self, *args, **kwargs):
            self.steps.append({"step": 0.0, "generation": 0.0, "scoring": 0.0})
            return super().get_batch_samples(*args, **kwargs)

        def training_step(self, *args, **kwargs):
            with self.clock("step"):
                return super().training_step(*args, **kwargs)

        def _generate_single_turn(self, *args, **kwargs):
            with self.clock("generation"):
                return super()._generate_single_turn(*args, **kwargs)

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)
            with self.clock("scoring"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    return Timed


def run(ours, options, device):
    rows = options.groups * GENERATIONS
    live = rows - round(options.groups * options.inert) * GENERATIONS
    tokens = []

    def reward(completion_ids, **kwargs):
        tokens.append(sum(map(len, completion_ids)))
        return [float(row % 2) if row < live else 0.0 for row in range(rows)]

    vocabulary = SHAPES[options.shape][6]
    forced = ForcedLengths(sample_lengths(rows, options.max_length, "lognormal"), vocabulary, device)
    trainer = timed(ForkingGRPOTrainer if ours else GRPOTrainer)(
        model=build_model(options.shape, device),
        reward_funcs=reward,
        args=(ForkingGRPOConfig if ours else GRPOConfig)(
            tempfile.mkdtemp(),
            top_entropy_quantile=RHO,
            epsilon_high=0.28,
            max_steps=options.steps + 1,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=rows // options.micro_batch,
            num_generations=GENERATIONS,
            max_completion_length=options.max_length,
            **run_settings(device),
        ),
        train_dataset=Dataset.from_dict({"prompt": [" ".join([f"w{forced.any}"] * PROMPT)] * options.groups}),
        processing_class=build_tokenizer(vocabulary),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model.register_forward_hook(forced, with_kwargs=True)
    trainer.train()
    measured = trainer.steps[1:]  # the first warms up
    seconds = {phase: statistics.median(step[phase] for step in measured) for phase in measured[0]}
    return {**seconds, "training": seconds["step"] - seconds["generation"] - seconds["scoring"], "tokens": tokens[1:]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--inert", type=float, default=0.4, help="share of groups without gradient")
    parser.add_argument("--groups", type=int, default=10, help="prompts of a step, with 8 completions each")
    parser.add_argument("--micro_batch", type=int, default=8, help="completions of a micro-batch")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of the longest completion")
    parser.add_argument("--steps", type=int, default=3, help="measured steps; medians are reported")
    parser.add_argument("--output", help="write the seconds to this JSON file, each trainer's when it is measured")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(COLUMNS.format("", "step", "generation", "scoring", "training", "tokens/s", "x TRL, step"))
    results = {}
    for name in ("TRL", "ours"):
        results[name] = run(name == "ours", options, device)
        if results[name]["tokens"] != results["TRL"]["tokens"]:
            raise RuntimeError("The two have not generated the same completions: there is nothing to compare.")
        if options.output:
            record = {"options": vars(options), "device": device, "torch": torch.__version__, "steps": results}
            Path(options.output).write_text(json.dumps(record, indent=2) + "\n")
    for name, result in results.items():
        step = result["step"]
        phases = (
            f"{result[phase]:.2f} s {result[phase] / step:.0%}" for phase in ("generation", "scoring", "training")
        )
        rate = statistics.median(result["tokens"]) / step
        print(COLUMNS.format(name, f"{step:.2f} s", *phases, f"{rate:,.0f}", f"{results['TRL']['step'] / step:.2f}"))


if __name__ == "__main__":
    main()

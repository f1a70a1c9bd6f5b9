"""
Generation without vLLM: transformers' `generate`, its continuous batching, and the decoding loop of this package.

    python -m benchmarks.generation                         # a tiny model on the CPU, minutes
    python -m benchmarks.generation --shape qwen3-0.6b      # random weights on a GPU, bf16

Plain `generate` runs every row until the longest one has ended. Continuous batching
(`use_transformers_continuous_batching`) drops rows as they end and reads a paged cache. The loop
(`compact_generation`) drops them, too, from a cache of its own. All go through `_generate_single_turn` of their
trainers, and write completions of the same lengths (`forced_lengths.py`): lognormal ones (`workload.sample_lengths`),
or equal ones. No two prompts are equal here, so that the loop reads as many as the others.

They take turns; times are medians, on the CPU in processor seconds, which other work on the machine hardly changes.
`useful` is the share of the positions decoded by plain `generate` that are tokens: its inverse bounds the gain.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer

from .forced_lengths import ForcedLengths
from .workload import FIRST_WORD, PROMPT_LENGTH, SHAPES, build_model, build_tokenizer, sample_lengths


COLUMNS = "{:>6} {:>14} {:>9} {:>9}  {:>17} {:>17} {:>17}  {:>24} {:>24}"
WAYS = ("generate", "continuous", "loop")


def build_trainer(options, device, way):
    continuous = way == "continuous"
    settings = {"transformers_continuous_batching_config": cache_config(options, device)} if continuous else {}
    trainer_class, config_class = (
        (ForkingGRPOTrainer, ForkingGRPOConfig) if way == "loop" else (GRPOTrainer, GRPOConfig)
    )
    return trainer_class(
        model=build_model(options.shape, device),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=config_class(
            tempfile.mkdtemp(),
            max_completion_length=options.max_length,
            use_transformers_continuous_batching=continuous,
            use_cpu=device == "cpu",
            bf16=device != "cpu",
            gradient_checkpointing=True,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": [f"w{FIRST_WORD}"]}),
        processing_class=build_tokenizer(SHAPES[options.shape][6]),
    )


def cache_config(options, device):
    """Settings of the paged cache: given, or TRL's; on the CPU just enough pages for all rows at full length."""
    if options.cb_config or device != "cpu":
        return json.loads(options.cb_config or "{}")
    # TRL's default is half of the free memory: without a GPU the whole of it is filled with zeros at every call.
    return pages_for(max(options.rows), options.max_length)


def pages_for(rows, longest):
    """Just enough pages for so many rows at full length, with TRL's shortest prompts."""
    pages = -(-(PROMPT_LENGTH + longest) // 256)
    return {"num_blocks": rows * pages + 8, "max_batch_tokens": max(512, 2 * rows)}


def seconds_of(trainer, prompts, lengths, device):
    """Seconds of one call: of the wall clock on a GPU, of the processor on the CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    completions, _ = trainer._generate_single_turn(prompts, None, {}, 1)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - start
    if [len(completion) for completion in completions] != lengths:
        raise RuntimeError("The completions do not have the lengths they were given: there is nothing to compare.")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 128], help="completions per call")
    parser.add_argument("--lengths", choices=["lognormal", "equal"], nargs="+", default=["lognormal", "equal"])
    parser.add_argument("--max_length", type=int, default=256, help="tokens of the longest completion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cb_config", help="JSON, TRL's transformers_continuous_batching_config")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    trainers = {way: build_trainer(options, device, way) for way in WAYS}
    print(f"{options.shape} on {name}, up to {options.max_length} tokens, medians of {options.repeats}")
    print(COLUMNS.format("rows", "lengths", "tokens", "useful", *WAYS, *(f"generate / {way}" for way in WAYS[1:])))
    for kind in options.lengths:
        for rows in options.rows:
            lengths = sample_lengths(rows, options.max_length, kind)
            seconds = {name: [] for name in trainers}
            for number in range(options.repeats + 1):  # the first warms up
                for name, trainer in trainers.items():
                    forced = ForcedLengths(lengths, 1, SHAPES[options.shape][6], device)
                    hook = trainer.model.register_forward_hook(forced, with_kwargs=True)
                    elapsed = seconds_of(trainer, forced.prompts, lengths, device)
                    hook.remove()
                    if number:
                        seconds[name].append(elapsed)
            ratios = [[a / b for a, b in zip(seconds["generate"], seconds[way], strict=True)] for way in WAYS[1:]]
            total = sum(lengths)
            print(
                COLUMNS.format(
                    rows,
                    kind,
                    f"{total:,}",
                    f"{total / (rows * max(lengths)):.0%}",
                    *(f"{statistics.median(s):.2f} s {total / statistics.median(s):,.0f}/s" for s in seconds.values()),
                    *(f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios),
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()

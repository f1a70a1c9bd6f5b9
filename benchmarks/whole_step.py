"""
Where the time of a whole RL step goes, against TRL on the same completions, in one run.

    python -m benchmarks.whole_step                         # a tiny model on the CPU, minutes
    python -m benchmarks.whole_step --processes 2           # wall seconds of the slower of two processes
    python -m benchmarks.whole_step --shape qwen3-0.6b      # random weights on a GPU, bf16

`GRPOTrainer` with its own `top_entropy_quantile`, generating with transformers' `generate`, with continuous batching
and with vLLM, and `ForkingGRPOTrainer`, whole and with each of its parts switched off, take the same steps with a
learning rate of zero: every group of completions has the same lengths (`forced_lengths.py`). Arms take turns,
`--warm_up` unmeasured and `--steps` measured steps each per round, so that a machine that slows down slows them all.
Printed, as a table in Markdown, are

- the seconds of generation, rewards, scoring (passes without gradient), training (forward, loss and backward passes),
  of what is left (credit, arrangement, data, optimizer), and of the whole step. On the CPU these are processor
  seconds, which other work on the machine hardly changes; on a GPU and with several processes wall seconds, of the
  process that took longest;
- how many times faster than TRL the whole step was in the same round: median and extremes;
- the training phase, everything but generation and rewards, as a multiple of that of the floor;
- peak memory over the whole step, beyond the weights, and its share of TRL's. On the CPU it is summed from the
  allocations that the profiler sees in the first step of the first round; with several processes it is not measured.

The floor of training is that of `step.py`: the same tokens without padding. That of generation is one forward pass for
each token of the longest completion, over exactly the rows that have not ended, with a cache allocated in advance,
each prompt read once, and the likeliest token taken. Nothing that decodes all rows together can do less than these
passes; what the sampling and the bookkeeping of a trainer cost is not in it, and Python's calls of the model's layers
are. With several processes the rows of the floor are shared evenly.

Decoding is bound by arithmetic on a CPU and by memory bandwidth on a GPU: the shares are those of the machine they
were measured on. vLLM is an arm where it is installed (`make test-vllm`); `vllm_arm.py` says how its lengths are
matched.
"""

import argparse
import os
import statistics
import sys
import time
import warnings


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler's remarks
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from trl_fork._files import write_json

from . import processes
from .arms import BASELINE
from .generation_floor import decode
from .instruments import device_name, release, without_warnings
from .phases import Phases
from .references import floor_step
from .whole_step_arms import WHOLE_STEP_ARMS, GenerationBatch, reason_to_leave_out, run
from .whole_step_table import CLOCKS, FLOOR, PHASES, WHOLE, markdown_table
from .workload import GENERATIONS, SHAPES, WORKLOADS, build_model


BEGIN = time.perf_counter()
MEMORY = "memory"  # in --skip


def measure(workload, arms, options, device, keep=lambda rows: None):
    """Rows of one workload: TRL, every arm and the floor once per round. `keep` gets them after every turn."""
    turns = {BASELINE.name: BASELINE, FLOOR: None} | {arm.name: arm for arm in arms}
    turns = {name: arm for name, arm in turns.items() if name not in options.skip}
    results = {name: [] for name in turns}
    for number in range(options.repeats):
        start = time.perf_counter()
        for name, arm in turns.items():
            release(device)
            batch = GenerationBatch(workload, options, device)
            if arm is None:
                result = floor(batch, options, device)
            else:
                measure_memory = number == 0 and options.processes == 1 and MEMORY not in options.skip
                result = run(arm, batch, options, device, measure_memory=measure_memory, processes=options.processes)
            results[name].append(processes.slowest(result))
            rows = summarize(results, workload, batch.num_tokens, clock_of(options, device))
            keep(rows)
        if options.time_limit and 2 * time.perf_counter() - start - BEGIN > options.time_limit:
            break
    return rows


def floor(batch, options, device):
    """Seconds of the floor of one process, as of an arm."""
    phases, share = Phases(device), batch.share(processes.index(), options.processes)
    model = build_model(options.shape, device).eval()
    step = floor_step(share, options, device, phases)
    for _ in range(options.warm_up + options.steps):
        phases.on_step_begin()
        with phases("generation"):
            decode(model, share, device)
        step()
        phases.on_step_end()
    return phases.medians(options.warm_up)


def clock_of(options, device):
    """Of the seconds that are shown."""
    return "processor_seconds" if device == "cpu" and options.processes == 1 else "seconds"


def summarize(results, workload, num_tokens, clock):
    """Rows of the arms that have had a turn. TRL's is the first turn of each round, if it is not skipped."""
    rows = []
    for name, rounds in sorted(results.items(), key=lambda item: item[0] == FLOOR):  # the last row of the table
        if not rounds:
            continue
        pairs = zip(results.get(BASELINE.name, []), rounds, strict=False)
        ratios = [theirs[clock][WHOLE] / own[clock][WHOLE] for theirs, own in pairs]
        rows.append(
            {
                "workload": workload,
                "arm": name,
                "num_tokens": num_tokens,
                "rounds": len(rounds),
                "clock": clock,
                **{kind: medians([found[kind] for found in rounds]) for kind in CLOCKS},
                "ratio": statistics.median(ratios) if ratios else None,
                "ratio_range": [min(ratios), max(ratios)] if ratios else None,
                "memory": rounds[0].get("memory"),
                "memory_with_weights": rounds[0].get("memory_with_weights"),
                **({"processes": [found["processes"] for found in rounds]} if "processes" in rounds[0] else {}),
            }
        )
    return rows


def medians(rounds):
    return {phase: statistics.median(seconds[phase] for seconds in rounds) for phase in (*PHASES, WHOLE)}


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--lora", action="store_true", help="train LoRA adapters of rank 16 on all linear layers")
    parser.add_argument("--workload", choices=list(WORKLOADS), nargs="+", default=list(WORKLOADS), help="all")
    parser.add_argument(
        "--arm", choices=[name for name in WHOLE_STEP_ARMS if name != BASELINE.name], nargs="+", help="beside TRL; all"
    )
    parser.add_argument("--groups", type=int, default=10, help="prompts of a step, with 8 completions each")
    parser.add_argument("--micro_batch", type=int, default=8, help="completions of a micro-batch of a process")
    parser.add_argument("--max_length", type=int, default=384, help="tokens of the longest completion")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all arms; medians are reported")
    parser.add_argument("--steps", type=int, default=1, help="measured steps per turn; their median counts")
    parser.add_argument("--warm_up", type=int, default=1, help="unmeasured steps at the start of every turn")
    parser.add_argument("--skip", choices=[BASELINE.name, FLOOR, MEMORY], nargs="+", default=[], help="to save time")
    parser.add_argument("--processes", type=int, default=1, help="processes that share a step, on this machine's CPU")
    parser.add_argument("--time_limit", type=float, help="seconds since the start after which no round should end")
    parser.add_argument("--output", help="write the rows to this JSON file, as far as they are measured")
    options = parser.parse_args(arguments)
    if options.groups % options.processes:
        parser.error(f"--processes must divide the {options.groups} --groups of a step")
    if options.groups * GENERATIONS % (options.micro_batch * options.processes):
        rows = options.groups * GENERATIONS
        parser.error(f"--micro_batch and --processes must divide the {rows} completions of a step")
    if not options.warm_up and MEMORY not in options.skip:
        parser.error("--warm_up 0: memory is measured in an unmeasured step, which takes longer; pass --skip memory")
    if options.processes > 1 and torch.cuda.is_available():
        parser.error("--processes: several processes are timed on a CPU only; hide the GPUs, CUDA_VISIBLE_DEVICES=''")
    return options


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    if options.processes > 1 and not processes.are_running():
        processes.launch("benchmarks.whole_step", options.processes, arguments)
        return
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_main = processes.index() == 0
    arms = []
    for name in options.arm or [name for name in WHOLE_STEP_ARMS if name != BASELINE.name]:
        if reason := reason_to_leave_out(WHOLE_STEP_ARMS[name], device, options.processes):
            if is_main:
                print(f"`{name}` is left out: {reason}.", flush=True)
        else:
            arms.append(WHOLE_STEP_ARMS[name])
    rows = []

    def keep(latest):
        if options.output and is_main:
            result = {
                "options": vars(options),
                "device": device_name(device),
                "torch": torch.__version__,
                "rows": [*rows, *latest],
            }
            write_json(options.output, result)

    for workload in options.workload:
        with without_warnings():
            found = measure(workload, arms, options, device, keep)
        rows += found
        if is_main:
            print(f"\n{markdown_table(found, vars(options), device_name(device))}", flush=True)


if __name__ == "__main__":
    main()

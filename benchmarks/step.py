"""
What a training step costs, against TRL's own `top_entropy_quantile` on the same rollouts, in one run.

    python -m benchmarks.step                          # a tiny model on the CPU, minutes
    python -m benchmarks.step --shape qwen3-0.6b       # random weights on a GPU, bf16
    python -m benchmarks.step --shape qwen3-4b --lora --max_length 8192 --groups 4 --output 4b.json
    python -m benchmarks.step --token_credit temporal_position answer_span   # credit rules; `all` for every preset

A step is everything but the rollout: scoring, reference and training passes. The variants take turns, one measured
step each per round, so that a machine that slows down slows all of them. Each row prints

- the median of its seconds, and of how many times faster than TRL it was in the same round, with the extremes; the
  same in processor time, which other work on the machine hardly changes (of no meaning on a GPU);
- peak memory: what PyTorch holds at most during a step, beyond what it held before it (the weights). On a GPU that is
  the allocator's own figure, and `--output` has the peak with the weights too; on the CPU it is summed from the
  allocations that the profiler sees in one more step;
- valid completion tokens per second;
- fill: the part of the positions in all forward passes that were tokens;
- the rows that the LM head projected in forward and backward passes. A saving that did not run shows here and in fill;
- how far the gradient is from the naive objective in float32: one completion at a time, full logits, no padding. TRL's
  has another objective (one threshold per micro-batch, all tokens in the denominator), so that its distance is large
  and no error. In bf16 tokens near the threshold are selected differently, whatever is left out: compare with the row
  that leaves nothing out.

On a GPU each turn begins with a step that is not measured: kernels are compiled in it. `--steps` measures more steps
per turn, and `--time_limit` begins no further round where it would not end in time. `--output` is rewritten after
every turn, so that a run that is cut off keeps what it has measured.

With `--token_credit` the rows are credit rules instead, beside TRL and the preset `forking`; `credit_table.py` says
what is printed. Rules with a schedule are timed where it starts, or at another `--progress`.

The floor is the same work on rows of equal length: a forward pass over the valid tokens, a forward and backward pass
over those of rows with a gradient, the LM head of the training pass on the selected tokens.
"""

import argparse
import os
import statistics
import time
import warnings


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler's remarks
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from rich.console import Console
from rich.table import Table

from trl_fork._files import write_json

from .arms import BASELINE, VARIANTS, RefusedError, run
from .credit_table import REFERENCE, arms_of, print_credit_table
from .instruments import device_name, release, without_warnings
from .references import floor, naive_gradient
from .workload import GENERATIONS, SHAPES, WORKLOADS, Rollouts


BEGIN = time.perf_counter()
FLOOR = "floor"


def measure(workload, arms, options, device, keep=lambda rows: None):
    """Rows of one workload: TRL and every arm once per round. `keep` gets them after every turn."""
    rollouts = Rollouts(options, *WORKLOADS[workload])
    by_credit = bool(options.token_credit)
    exact = None if options.skip_gradient_error or by_credit else naive_gradient(rollouts, options, device)
    turns = {arm.name: arm for arm in (BASELINE, *arms)} | ({} if by_credit else {FLOOR: None})
    results, refused = {name: [] for name in turns}, {}
    for number in range(options.repeats):
        start = time.perf_counter()
        for name, arm in turns.items():
            if name in refused:
                continue
            release(device)
            try:
                if arm is None:
                    result = floor(rollouts, options, device)
                elif by_credit:
                    result = run(arm, rollouts, None, options, device, warm_up=1)
                else:
                    result = run(arm, rollouts, exact, options, device, measure_memory=number == 0)
                results[name].append(result)
            except RefusedError as error:
                refused[name] = str(error)
            keep(summarize(results, refused, workload, rollouts))
        now = time.perf_counter()
        if options.time_limit and now - BEGIN + (now - start) > options.time_limit:
            break
    return summarize(results, refused, workload, rollouts)


def summarize(results, refused, workload, rollouts):
    """
    Rows of the arms that have had a turn, and of those that the trainer refuses.

    TRL's is the first turn of each round and that of `forking` the second, if there are credit rules: every turn has
    them beside it.
    """
    rows = []
    for name, rounds in results.items():
        row = {"workload": workload, "variant": name}
        if name in refused:
            rows.append(row | {"refused": refused[name]})
        if not rounds:
            continue
        row |= {
            **rounds[0],
            "seconds": statistics.median(result["seconds"] for result in rounds),
            "num_tokens": rollouts.num_tokens,
            "rounds": len(rounds),
        }
        row["tokens_per_second"] = rollouts.num_tokens / row["seconds"]
        for prefix, base in (("", BASELINE.name), (f"{REFERENCE}_", REFERENCE)):
            if results.get(base):
                row |= {f"{prefix}{key}": value for key, value in ratios(results[base], rounds).items()}
        rows.append(row)
    return rows


def ratios(base, rounds):
    """How many times faster than `base` in the same round: median and extremes, and the median in processor time."""

    def times(clock):
        return [theirs[clock] / own[clock] for theirs, own in zip(base, rounds, strict=False)]

    seconds = times("seconds")
    return {
        "ratio": statistics.median(seconds),
        "ratio_range": [min(seconds), max(seconds)],
        "processor_ratio": statistics.median(times("processor_seconds")),
    }


def title_of(rows, options, device):
    kind = "LoRA, " if options.lora else ""
    return f"{options.shape} on {device}, {kind}{rows[0]['workload']}: {rows[0]['num_tokens']:,} completion tokens"


def print_table(rows, options, device):
    table = Table(title=title_of(rows, options, device))
    measures = (
        "seconds",
        "x TRL",
        "CPU time",
        "peak MiB",
        "tokens/s",
        "fill",
        "head rows fwd / bwd",
        "gradient error",
    )
    for column in ("", *measures):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        measured = "memory" in row  # not of the floor
        table.add_row(
            "  " * row["variant"].startswith("without") + row["variant"],
            f"{row['seconds']:.3f}",
            "{:.2f} ({:.2f} to {:.2f})".format(row["ratio"], *row["ratio_range"]),
            f"{row['processor_ratio']:.2f}",
            f"{row['memory'] / 2**20:,.0f}" if measured else "",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['fill']:.0%}" if measured else "100%",
            f"{row['head_forward']:,} / {row['head_backward']:,}" if measured else "",
            f"{row['error']:.1e}" if row.get("error") is not None else "",
        )
    Console(width=140).print(table)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--lora", action="store_true", help="train LoRA adapters of rank 16 on all linear layers")
    parser.add_argument(
        "--workload", choices=list(WORKLOADS), nargs="+", help="by default three; with --token_credit one"
    )
    parser.add_argument("--variant", choices=list(VARIANTS), nargs="+", help="beside TRL")
    parser.add_argument(
        "--token_credit", nargs="+", metavar="NAME", help="credit rules in the place of variants: presets, or `all`"
    )
    parser.add_argument("--progress", type=float, default=0.0, help="place in the rules' schedules, in [0, 1]")
    parser.add_argument("--groups", type=int, default=10, help="prompts of a step, with 8 completions each")
    parser.add_argument("--micro_batch", type=int, default=8, help="completions of a micro-batch")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of the longest completion")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all variants; medians are reported")
    parser.add_argument("--steps", type=int, default=1, help="measured steps per turn; their median counts")
    parser.add_argument("--time_limit", type=float, help="seconds since the start after which no round should end")
    parser.add_argument(
        "--skip_gradient_error", action="store_true", help="no naive gradient, which takes minutes where rows are long"
    )
    parser.add_argument("--output", help="write the rows to this JSON file, as far as they are measured")
    options = parser.parse_args(arguments)
    if options.groups * GENERATIONS % options.micro_batch:
        parser.error(f"--micro_batch must divide the {options.groups * GENERATIONS} completions of a step")
    if options.token_credit and options.variant:
        parser.error("--variant and --token_credit are two tables: pass one of them")
    if options.progress and not options.token_credit:
        parser.error("--progress is a place in the schedules of credit rules: pass --token_credit too")
    if not 0 <= options.progress <= 1:
        parser.error(f"--progress must be in [0, 1], got {options.progress:g}")
    try:
        arms = arms_of(options.token_credit, options.progress) if options.token_credit else None
    except ValueError as error:
        parser.error(str(error))
    if arms is None:
        arms = [VARIANTS[name] for name in options.variant or VARIANTS]
    workloads = options.workload or list(WORKLOADS)[: 1 if options.token_credit else 3]
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []

    def keep(latest):
        if options.output:
            result = {
                "options": vars(options),
                "device": device_name(device),
                "torch": torch.__version__,
                "rows": [*rows, *latest],
            }
            write_json(options.output, result)

    for workload in workloads:
        with without_warnings():
            found = measure(workload, arms, options, device, keep)
        if options.token_credit:
            print_credit_table(found, title_of(found, options, device))
        else:
            print_table(found, options, device)
        rows += found


if __name__ == "__main__":
    main()

"""
What one step of decoding costs, by the cache of keys and values and the attention that PyTorch takes.

    python -m benchmarks.decoding_step                         # a tiny model on the CPU, seconds
    python -m benchmarks.decoding_step --shape qwen3-0.6b      # random weights on a GPU, bf16

A step is a forward pass over one token of every row. Printed are milliseconds of a step, over `--steps` steps of
growing length: `first` where every length is new, and `again` at the same lengths, for which whatever is prepared is
there. `fewer` takes a row away at every step, so that every number of rows is new, too. The caches are that of
`generate` (keys and values are copied at every token), that of this package's decoding loop (they stay in place, with
room for more), and on a GPU a static one whose step is replayed as a CUDA graph: launched by the host at once, it
shows what the GPU itself takes. `launches` counts the kernels of a step.
"""

import argparse
import os
import time
import warnings


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from transformers import DynamicCache, StaticCache

from trl_fork._files import write_json
from trl_fork._transformers import CACHE
from trl_fork.generation.key_values import move_rows, with_rows

from .instruments import device_name
from .workload import FIRST_WORD, PROMPT_LENGTH, SHAPES, build_model


CACHES = ("of generate", "of the loop")


def prefilled(model, rows, longest, kind):
    """A cache after the prompts, and the token of each row to go on with."""
    ids = torch.full((rows, PROMPT_LENGTH), FIRST_WORD, device=model.device)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, use_cache=True, logits_to_keep=1, **{CACHE: cache})
    if kind == "of the loop":
        cache = with_rows(cache, torch.arange(rows, device=model.device), longest)
    return cache, ids[:, :1]


def decode(model, cache, token, steps, *, fewer):
    """Seconds of so many steps."""
    synchronize(model)
    start = time.perf_counter()
    for _ in range(steps):
        model(input_ids=token, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        if fewer and len(token) > 1:
            kept, nothing = len(token) - 1, token.new_empty(0)
            move_rows(cache, nothing, nothing, kept)
            token = token[:kept]
    synchronize(model)
    return time.perf_counter() - start


def synchronize(model):
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def launches(model, cache, token):
    """Kernels of one step; `None` on a CPU."""
    if model.device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        model(input_ids=token, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages())


def replayed(model, rows, longest, steps):
    """Seconds of steps that are replayed as a CUDA graph, at the length of a static cache."""
    token = torch.full((rows, 1), FIRST_WORD, device=model.device)
    cache = StaticCache(config=model.config, max_cache_len=longest)
    position = torch.full((rows, 1), PROMPT_LENGTH, device=model.device)
    mask = torch.ones(rows, 1, 1, longest, dtype=torch.bool, device=model.device)

    def step():
        model(input_ids=token, position_ids=position, attention_mask=mask, logits_to_keep=1, **{CACHE: cache})

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        graph.replay()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(model, rows, options):
    """Rows of the table for one number of rows."""
    found, longest = [], PROMPT_LENGTH + options.steps + 2
    cuda = model.device.type == "cuda"
    for cudnn in (True, False) if cuda else (True,):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for kind in CACHES:
            times = [
                decode(model, *prefilled(model, rows, longest, kind), options.steps, fewer=fewer) / options.steps
                for fewer in (False, False, True, True)
            ]
            names = ("first", "again", "first_fewer", "again_fewer")
            found.append(
                {
                    "rows": rows,
                    "cache": kind,
                    "cudnn": cudnn if cuda else None,
                    **{name: 1000 * seconds for name, seconds in zip(names, times, strict=True)},
                    "launches": launches(model, *prefilled(model, rows, longest, kind)),
                }
            )
            print(line(found[-1]), flush=True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    if cuda:
        try:
            seconds = replayed(model, rows, longest, options.steps)
            found.append({"rows": rows, "cache": "static, replayed", "again": 1000 * seconds / options.steps})
        except Exception as error:  # what cannot be captured is a result, and the others must be kept
            found.append({"rows": rows, "cache": "static, replayed", "reason": f"{type(error).__name__}: {error}"})
        print(line(found[-1]), flush=True)
    return found


def line(row):
    cudnn = {True: ", with cuDNN", False: ", without cuDNN", None: ""}[row.get("cudnn")]
    names = ("first", "again", "first_fewer", "again_fewer")
    times = "".join(f"{row[name]:>12.2f}" if name in row else f"{'':>12}" for name in names)
    count = row.get("launches")
    last = f"{'' if count is None else count:>10} {row.get('reason', '')}"
    return f"{row['rows']:>6}  {row['cache'] + cudnn:<28}{times}{last}"


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64], help="rows that are decoded together")
    parser.add_argument("--steps", type=int, default=32, help="steps of decoding in a measurement")
    parser.add_argument("--output", help="write the rows to this JSON file, as far as they are measured")
    return parser.parse_args(arguments)


@torch.inference_mode()
def main(arguments=None):
    options = parse_arguments(arguments)
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(options.shape, device).eval()
    print(f"{options.shape} on {device_name(device)}, milliseconds of a step")
    heads = ("first", "again", "first, fewer", "again, fewer")
    print(f"{'rows':>6}  {'cache':<28}" + "".join(f"{name:>12}" for name in heads) + f"{'launches':>10}")
    decode(model, *prefilled(model, 2, PROMPT_LENGTH + 6, CACHES[0]), 4, fewer=False)  # warms up
    rows = []
    for count in options.rows:
        rows += measure(model, count, options)
        if options.output:
            write_json(options.output, {"options": vars(options), "device": device_name(device), "rows": rows})


if __name__ == "__main__":
    main()

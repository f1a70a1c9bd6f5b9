"""
What it costs to find the forking tokens of all ranks: exact counting against gathering and `torch.quantile`.

    python -m benchmarks.selection

Two processes over gloo, half of the tokens each, run `trl_fork.select_tokens` and TRL's `get_high_entropy_mask` on the
same entropies. Then 200 million tokens on 64 simulated ranks, threads of one process that exchange tensors in memory:
twelve times what `torch.quantile` accepts. About two minutes on two cores, and 12 GiB of memory.
"""

import argparse
import os
import resource
import socket
import threading
import time
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from trl import GRPOTrainer

from trl_fork import select_tokens
from trl_fork.credit import forking_count
from trl_fork.distributed import Ranks


RHO = 0.2
REPEATS = 3
COLUMNS = "{:>13}  {:>11} {:>11} {:>7}  {:>12} {:>14} {:>9}  {:>12} {:>12}"


class CountingAccelerator(Accelerator):
    """Counts the bytes that this rank receives from collectives."""

    received = 0

    def reduce(self, tensor, *args, **kwargs):
        self.received += tensor.nbytes
        return super().reduce(tensor, *args, **kwargs)

    def gather(self, tensor):
        self.received += tensor.nbytes * self.num_processes
        return super().gather(tensor)


class ThreadRanks(Ranks):
    """Ranks that are threads of one process."""

    def __init__(self, index, count, shared, barrier):
        self.index, self.count, self.shared, self.barrier = index, count, shared, barrier
        self.received = 0

    def _exchange(self, tensor):
        self.shared[self.index] = tensor
        self.barrier.wait()
        tensors = torch.stack(self.shared)
        self.barrier.wait()
        return tensors

    def sum(self, tensor):
        self.received += tensor.nbytes
        return self._exchange(tensor).sum(0)

    def gather(self, scalar):
        self.received += scalar.nbytes * self.count
        return self._exchange(scalar.reshape(()))


def sample_entropies(num_tokens: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies of a language model look like this: most near 0, a long tail."""
    generator = torch.Generator().manual_seed(rank)
    entropies = torch.empty(1, num_tokens).exponential_(generator=generator).pow_(2)
    return entropies, torch.ones(1, num_tokens, dtype=torch.bool)


def measure(accelerator, function):
    """Median seconds, bytes received, and number of tokens selected on all ranks; or the error."""
    seconds = []
    for _ in range(REPEATS):
        accelerator.wait_for_everyone()
        accelerator.received = 0
        start = time.perf_counter()
        try:
            selected = function()
        except RuntimeError as error:
            return error
        seconds.append(time.perf_counter() - start)
    received = accelerator.received
    return sorted(seconds)[REPEATS // 2], received, int(accelerator.reduce(selected.sum()))


def compare(rank: int, num_processes: int, port: int, sizes: list[int]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
    }
    torch.set_num_threads(1)
    accelerator = CountingAccelerator(cpu=True)
    assert accelerator.num_processes == num_processes
    ranks, trainer = Ranks(accelerator), SimpleNamespace(accelerator=accelerator)
    for size in sizes:
        entropies, mask = sample_entropies(size // num_processes, rank)
        ours = measure(accelerator, lambda e=entropies, m=mask: select_tokens(e, m, RHO, ranks=ranks))
        theirs = measure(
            accelerator, lambda e=entropies, m=mask: GRPOTrainer.get_high_entropy_mask(trainer, e, m, 1 - RHO)
        )
        if accelerator.is_main_process:
            print_row(size, ours, theirs)
    torch.distributed.destroy_process_group()


def print_row(size, ours, theirs):
    seconds, received, selected = ours
    error = theirs if isinstance(theirs, RuntimeError) else ""
    if error:
        columns = [f"{seconds:.4f}", "-", "-", f"{received:,}", "-", "-", f"{selected:,}", "-"]
    else:
        ratios = f"{theirs[0] / seconds:.2f}", f"{theirs[1] / received:.1f}"
        columns = [f"{seconds:.4f}", f"{theirs[0]:.4f}", ratios[0], f"{received:,}", f"{theirs[1]:,}", ratios[1]]
        columns += [f"{selected:,}", f"{theirs[2]:,}"]
    print(COLUMNS.format(f"{size:,}", *columns), error, flush=True)


def simulate(num_tokens: int, count: int) -> None:
    """`count` ranks as threads, `num_tokens` tokens in all."""
    torch.set_num_threads(1)
    parts = [sample_entropies(num_tokens // count, rank) for rank in range(count)]
    shared, barrier = [None] * count, threading.Barrier(count)
    every_rank = [ThreadRanks(rank, count, shared, barrier) for rank in range(count)]
    selected = [None] * count

    def run(rank):
        selected[rank] = select_tokens(*parts[rank], RHO, ranks=every_rank[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start

    total = num_tokens // count * count
    chosen = sum(int(part.sum()) for part in selected)
    assert chosen == forking_count(total, RHO)
    lowest = min(e[s].min() for (e, _), s in zip(parts, selected, strict=True))
    assert lowest >= max(e[~s].max() for (e, _), s in zip(parts, selected, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{total:,} tokens on {count} simulated ranks: {chosen:,} selected, ceil({RHO} N), all above the rest.")
    print(f"{seconds:.1f} s for all ranks together on {os.cpu_count()} cores. Each received")
    print(f"{every_rank[0].received:,} bytes; of a gather it would be {4 * total:,}. Peak memory {peak:.1f} GiB.")
    try:
        torch.quantile(torch.zeros(2**24 + 1), 1 - RHO)
    except RuntimeError as error:
        print(f"torch.quantile of 2**24 + 1 = {2**24 + 1:,} values: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [10_000, 100_000, 1_000_000, 10_000_000, 2**24, 2**24 + 2, 40_000_000]
    parser.add_argument("--sizes", type=int, nargs="*", default=sizes, help="tokens of both processes together")
    parser.add_argument("--simulated", type=int, default=200_000_000, help="tokens of the simulated ranks together")
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print(f"2 processes over gloo, one thread each; median of {REPEATS}; bytes are those a rank receives.")
    names = ["tokens", "exact, s", "TRL, s", "ratio", "exact, B", "TRL, B", "ratio", "exact keeps", "TRL keeps"]
    print(COLUMNS.format(*names))
    torch.multiprocessing.spawn(compare, args=(2, port, arguments.sizes), nprocs=2)
    print()
    simulate(arguments.simulated, 64)


if __name__ == "__main__":
    main()

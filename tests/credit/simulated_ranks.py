"""Several ranks as threads of this process."""

import threading

import torch

from trl_fork.ranks import Ranks


class ThreadRanks(Ranks):
    """Every collective waits for the threads of all ranks."""

    def __init__(self, index, count, shared, barrier):
        self.index, self.count, self.shared, self.barrier = index, count, shared, barrier

    def _exchange(self, tensor):
        self.shared[self.index] = tensor
        self.barrier.wait()
        tensors = list(self.shared)
        self.barrier.wait()
        return torch.stack(tensors)

    def sum(self, tensor):
        return self._exchange(tensor).sum(0)

    def gather(self, scalar):
        return self._exchange(scalar.reshape(()))


def on_ranks(function, arguments):
    """Call `function(*arguments[i], ranks)` on rank i: the results and the errors of all ranks."""
    count = len(arguments)
    shared, barrier = [None] * count, threading.Barrier(count, timeout=20)
    results, errors = [None] * count, [None] * count

    def run(index):
        try:
            results[index] = function(*arguments[index], ThreadRanks(index, count, shared, barrier))
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, errors


def all_results(function, arguments):
    """[`on_ranks`] where no rank may raise."""
    results, errors = on_ranks(function, arguments)
    assert errors == [None] * len(arguments)
    return results

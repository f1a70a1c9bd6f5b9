"""
Hostile answers to the graders of training: is one of them right, or does one stall the run?

They are graded in batches as a training does, by `accuracy_reward`'s worker processes, with their limits of time and
memory. After every batch honest answers are graded too, which must come out as they do without hostile ones before.
"""

import time
from collections import defaultdict
from pathlib import Path

from tests.hostile_answers import HOSTILE, hostile_answers
from trl_fork.rewards.grading import GradingPool


BATCH = 250  # answers of a generation batch
GOLD = "72"
HONEST = [(r"\boxed{72}", 1.0), (r"\boxed{71}", 0.0), (r"\boxed{\frac{144}{2}}", 1.0), ("no box", 0.0)]
WORKERS = 2


def time_workers(pool: GradingPool) -> list[float]:
    """Seconds that each answer takes in its worker, from now on."""
    seconds: list[float] = []

    def timed(grade):
        def wrapped(*words):
            begin = time.perf_counter()
            try:
                return grade(*words)
            finally:
                seconds.append(time.perf_counter() - begin)

        return wrapped

    for worker in pool._workers:
        worker.grade = timed(worker.grade)
    return seconds


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """`number` answers, see [`parts`]."""
    found: dict = {"kinds": len(HOSTILE), "workers": WORKERS, "batch": BATCH, "answers": 0, "right": 0}
    found |= {"not_graded": 0, "honest_wrong": 0, "failures": {}, "seconds_of_batches": [], "seconds_of_answer": {}}
    by_kind: dict[str, list[float]] = defaultdict(list)
    kinds = list(HOSTILE)
    with GradingPool(num_workers=WORKERS) as pool:
        honest = [answer for answer, _ in HONEST]
        pool.grade(honest, [GOLD] * len(honest))  # the processes start
        seconds = time_workers(pool)
        # One by one at first, with the whole limit of time for each: the most that an answer of each kind can cost.
        for kind, answer in zip(kinds, hostile_answers(len(kinds), seed=seed), strict=True):
            found["right"] += sum(bool(verdict.reward) for verdict in pool.grade([answer], [GOLD]))
            found["answers"] += 1
            by_kind[kind].append(seconds[-1])
        alone = sum(seconds)
        progress(f"{len(kinds)} one by one in {alone:.0f} s, at most {max(seconds):.1f} s", found)
        while found["answers"] < number:
            size = min(BATCH, number - found["answers"])
            answers = hostile_answers(size, seed=seed + found["answers"])
            begin = time.perf_counter()
            verdicts = pool.grade(answers, [GOLD] * size)
            found["seconds_of_batches"].append(round(time.perf_counter() - begin, 2))
            found["answers"] += size
            found["right"] += sum(bool(verdict.reward) for verdict in verdicts)
            found["not_graded"] += sum(verdict.reward is None for verdict in verdicts)
            graded = pool.grade(honest, [GOLD] * len(honest))
            found["honest_wrong"] += sum(v.reward != right for v, (_, right) in zip(graded, HONEST, strict=True))
            found["failures"] = dict(pool.failures)
            found["seconds_of_answer"] = {"total": round(sum(seconds), 1), "max": round(max(seconds), 2)}
            progress(f"{found['answers']}/{number} in {sum(found['seconds_of_batches']):.0f} s", found)
        found["slowest_kinds"] = {
            kind: round(max(values), 2) for kind, values in sorted(by_kind.items(), key=lambda item: -max(item[1]))[:5]
        }
    return found


def summary(found: dict) -> str:
    batches, seconds = found["seconds_of_batches"], found["seconds_of_answer"]
    return (
        f"{found['answers']:,} answers of {found['kinds']} kinds, {found['right']} right, {found['honest_wrong']} "
        f"honest ones wrong after them; at most {seconds['max']:.1f} s for an answer and {max(batches):.0f} s for a "
        f"batch of {found['batch']}, {sum(batches):.0f} s in all"
    )

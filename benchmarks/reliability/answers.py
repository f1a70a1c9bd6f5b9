"""
Hostile answers to the graders of training: is one of them right, or does one stall the run?

They are graded in batches as a training does, by `accuracy_reward` in worker processes with limits of time and memory.
After every batch honest answers are graded too, which must come out as they do without hostile ones before them.
"""

import time
from collections import Counter
from pathlib import Path

from tests.hostile_answers import HOSTILE, hostile_answers
from trl_fork.rewards.grading import GradingPool


BATCH = 250  # answers of a generation batch
GOLD = "72"
HONEST = [(r"\boxed{72}", 1.0), (r"\boxed{71}", 0.0), (r"\boxed{\frac{144}{2}}", 1.0), ("no box", 0.0)]
WORKERS = 2


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """`number` answers, see [`parts`]."""
    found: dict = {
        "kinds": len(HOSTILE),
        "workers": WORKERS,
        "answers": 0,
        "right": 0,
        "not_graded": 0,
        "honest_wrong": 0,
        "failures": {},
        "batch_seconds": [],
        "slowest_kinds": {},
    }
    by_kind: Counter = Counter()
    names = list(HOSTILE)
    with GradingPool(num_workers=WORKERS) as pool:
        # One by one, each in a fresh allowance of time: the most that a single answer of a kind can cost.
        for name, answer in zip(names, hostile_answers(len(names), seed=seed), strict=True):
            with GradingPool(num_workers=1) as alone:
                alone.grade([HONEST[0][0]], [GOLD])
                begin = time.perf_counter()
                (verdict,) = alone.grade([answer], [GOLD])
                by_kind[name] = time.perf_counter() - begin
            found["right"] += bool(verdict.reward)
        found["slowest_kinds"] = {name: round(seconds, 2) for name, seconds in by_kind.most_common(5)}
        progress(f"alone, the slowest is of the kind {by_kind.most_common(1)[0][0]!r}", found)
        while found["answers"] < number:
            size = min(BATCH, number - found["answers"])
            answers = hostile_answers(size, seed=seed + 1 + found["answers"])
            begin = time.perf_counter()
            verdicts = pool.grade(answers, [GOLD] * size)
            found["batch_seconds"].append(round(time.perf_counter() - begin, 2))
            found["answers"] += size
            found["right"] += sum(bool(verdict.reward) for verdict in verdicts)
            found["not_graded"] += sum(verdict.reward is None for verdict in verdicts)
            graded = pool.grade([answer for answer, _ in HONEST], [GOLD] * len(HONEST))
            found["honest_wrong"] += sum(v.reward != right for v, (_, right) in zip(graded, HONEST, strict=True))
            found["failures"] = dict(pool.failures)
            progress(f"{found['answers']}/{number} in {sum(found['batch_seconds']):.0f} s", found)
    return found


def summary(found: dict) -> str:
    seconds = found["batch_seconds"]
    return (
        f"{found['answers']:,} answers of {found['kinds']} kinds, {found['right']} right, {found['honest_wrong']} honest "
        f"ones wrong, {sum(seconds):.0f} s in all, {sum(seconds) / found['answers']:.3f} s each, "
        f"{max(seconds):.0f} s at most for {BATCH}, {max(found['slowest_kinds'].values()):.1f} s for one alone"
    )

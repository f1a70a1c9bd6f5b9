"""What the rows of results say: runs by arm, intervals, differences by seed."""

from dataclasses import dataclass

import numpy as np
from grid import SEEDS, SWEEP_FACTORS, SWEEP_SEEDS, TASKS, UPDATES_PER_BATCH, cell_of, chosen_learning_rates
from scipy import stats
from settings import NUM_GENERATIONS, SIZES


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval, by Student's t."""

    mean: float
    half_width: float
    n: int
    p: float = float("nan")  # two-sided, of a mean of zero

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.half_width:{spec.lstrip('+')}}"

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width


def interval(values) -> Interval:
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return Interval(values.mean() if n else float("nan"), float("nan"), n)
    error = stats.sem(values)
    p = stats.ttest_1samp(values, 0.0).pvalue if error else float("nan")
    return Interval(values.mean(), float(stats.t.ppf(0.975, n - 1) * error), n, float(p))


def area_under_curve(row: dict) -> float:
    """Mean held-out accuracy over training: the area under its curve, divided by the number of steps."""
    steps = [point["step"] for point in row["evaluations"]]
    return float(np.trapezoid([point["accuracy"] for point in row["evaluations"]], steps) / steps[-1])


class Study:
    """
    The rows of one size, by what they are asked for.

    Args:
        rows (`list[dict]`): Lines of results.
        starts (`dict[str, dict]`): By task, what the model can do before training.
    """

    def __init__(self, rows: list[dict], starts: dict[str, dict]):
        self.rows, self.starts = rows, starts
        self.size = rows[0]["size"]
        self.learning_rates = chosen_learning_rates(rows, self.size)
        self.by_cell = {cell_of(row): row for row in rows}

    def runs(self, task: str, updates: int, arm: str, learning_rate: float | None = None) -> dict[int, dict]:
        """Runs by seed, at the chosen learning rate unless another is given."""
        learning_rate = learning_rate or self.learning_rates[task, updates]
        return {
            cell.seed: row
            for cell, row in sorted(self.by_cell.items(), key=lambda item: item[0].seed)
            if (cell.task, cell.updates_per_batch, cell.arm) == (task, updates, arm)
            and cell.learning_rate == learning_rate
            and cell.seed in SEEDS
        }

    def difference(self, task: str, updates: int, first: str, second: str, measure=None) -> Interval:
        """Of two arms, over the seeds that both have."""
        measure = measure or (lambda row: row["accuracy"])
        a, b = self.runs(task, updates, first), self.runs(task, updates, second)
        return interval([measure(a[seed]) - measure(b[seed]) for seed in a if seed in b])


def holm(ps: list[float]) -> list[float]:
    """P-values corrected for their number, by Holm's step-down method."""
    adjusted, highest = [1.0] * len(ps), 0.0
    for rank, index in enumerate(np.argsort(ps)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


def selected_tokens(runs: list[dict]) -> float:
    """Mean number of tokens, over a whole run, that the policy gradient saw."""
    totals = []
    for row in runs:
        settings = SIZES[row["size"]]
        rollouts = settings.prompts_per_update * NUM_GENERATIONS
        # What is logged of a generation holds for every update on it.
        lengths, fractions = (filled(row["training"][name]) for name in ("length", "selected_fraction"))
        if row["arm"] == "all":
            fractions = np.ones_like(lengths)
        totals.append(float((lengths * fractions * rollouts).sum()))
    return float(np.mean(totals))


def filled(values: list[float | None]) -> np.ndarray:
    """A curve whose gaps hold the last value before them."""
    result, last = [], float("nan")
    for value in values:
        last = last if value is None else value
        result.append(last)
    return np.array(result)


def swept(study: Study, task: str, updates: int, arm: str) -> list[float | None]:
    """Mean accuracy over `SWEEP_SEEDS` at each learning rate of the sweep, rising; `None` where a run is missing."""
    chosen, means = study.learning_rates[task, updates], []
    for factor in sorted([1.0, *SWEEP_FACTORS]):
        runs = study.runs(task, updates, arm, float(f"{factor * chosen:.3g}"))
        values = [runs[seed]["accuracy"] for seed in SWEEP_SEEDS if seed in runs]
        means.append(float(np.mean(values)) if len(values) == len(SWEEP_SEEDS) else None)
    return means


def lead_at_best_rates(study: Study, first: str, second: str) -> list[tuple[str, int, float, float]]:
    """
    Per setting with a whole sweep of both arms: task, updates per batch, and how far the first is ahead, at the chosen
    learning rate and each at the best of its own.
    """
    leads = []
    for task in TASKS:
        for updates in UPDATES_PER_BATCH:
            a, b = (swept(study, task, updates, arm) for arm in (first, second))
            if None not in a + b:
                middle = len(a) // 2
                leads.append((task, updates, a[middle] - b[middle], max(a) - max(b)))
    return leads


def gradient_points(study: Study, task: str, updates: int) -> list[dict]:
    runs = study.runs(task, updates, "all").values()
    return [point for row in runs for point in row["gradients"] if "norm/all" in point]

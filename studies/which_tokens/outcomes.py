"""What the rows of results say: runs by arm, intervals, differences by seed."""

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from .grid import (
    CONFIRMATION_SEEDS,
    CONFIRMED_ARMS,
    LONG_SETTINGS,
    SEEDS,
    SETTINGS,
    STAGES,
    Cell,
    best_learning_rate,
    cell_of,
    chosen_learning_rates,
    sweep_of,
    swept,
)
from .settings import NUM_GENERATIONS, SIZES


# P-values are corrected for their number in all settings (Holm). The first were decided on before the runs of the
# stage `arms`; the others with their results known, see the page.
COMPARISONS = (("top20", "all"), ("top20", "random20"), ("bottom80", "all"))
CONFIRMED_COMPARISONS = (("top20", "all"), ("top20", "random20"))
LONG_COMPARISONS = (("top20", "all"),)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval, by Student's t."""

    mean: float
    half_width: float
    n: int
    p: float = float("nan")  # two-sided, of a mean of zero

    def __format__(self, spec: str) -> str:
        mean = f"{self.mean:{spec}}"
        return mean if self.n < 2 else f"{mean} ± {self.half_width:{spec.lstrip('+')}}"

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


def accuracy(row: dict) -> float:
    return row["accuracy"]


def area_under_curve(row: dict) -> float:
    """Mean held-out accuracy over training: the area under its curve, divided by the number of steps."""
    steps = [point["step"] for point in row["evaluations"]]
    return float(np.trapezoid([point["accuracy"] for point in row["evaluations"]], steps) / steps[-1])


def paired(first: dict[int, dict], second: dict[int, dict], measure=accuracy) -> Interval:
    """The difference of two sets of runs, over the seeds that both have."""
    return interval([measure(row) - measure(second[seed]) for seed, row in first.items() if seed in second])


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

    def runs(self, task: str, updates: int, arm: str) -> dict[int, dict]:
        """Runs by seed, at the learning rate that was chosen on all tokens."""
        return self._by_seed(self.cell(task, updates, arm), SEEDS)

    def confirmation_runs(self, task: str, updates: int, arm: str) -> dict[int, dict]:
        """Runs by seed on `CONFIRMATION_SEEDS`, at the learning rate that was the best one for the arm."""
        return self._with_rate_of(arm, task, updates, arm, self.size)

    def common_runs(self, task: str, updates: int, arm: str) -> dict[int, dict]:
        """Like [`confirmation_runs`], at the learning rate that was best for the top 20 %."""
        return self._with_rate_of("top20", task, updates, arm, self.size)

    def long_runs(self, task: str, updates: int, arm: str) -> dict[int, dict]:
        """Like [`common_runs`], for the stage `long`."""
        return self._with_rate_of("top20", task, updates, arm, f"{self.size}-long")

    def long_runs_with_own_rates(self, task: str, updates: int, arm: str) -> dict[int, dict]:
        """Like [`confirmation_runs`], for the stage `long`."""
        return self._with_rate_of(arm, task, updates, arm, f"{self.size}-long")

    def _with_rate_of(self, rate_arm: str, task: str, updates: int, arm: str, size: str) -> dict[int, dict]:
        if arm not in CONFIRMED_ARMS:  # one that was swept only has no rate beyond the edge
            return {}
        rate = best_learning_rate(self.rows, self.cell(task, updates, rate_arm))
        return self._by_seed(replace(self.cell(task, updates, arm), size=size, learning_rate=rate), CONFIRMATION_SEEDS)

    def _by_seed(self, cell: Cell, seeds) -> dict[int, dict]:
        found = {seed: self.by_cell.get(replace(cell, seed=seed)) for seed in seeds}
        return {seed: row for seed, row in found.items() if row is not None}

    def pooled_difference(self, task: str, updates: int, first: str, second: str) -> Interval | None:
        """Difference over [`runs`] and [`common_runs`] together; `None` if their learning rates differ."""
        a, b = (self.runs(task, updates, arm) | self.common_runs(task, updates, arm) for arm in (first, second))
        rates = {row["learning_rate"] for row in (*a.values(), *b.values())}
        return paired(a, b) if len(rates) == 1 else None

    def is_complete(self, stage: str) -> bool:
        """Whether every run of a stage is there."""
        try:
            cells = STAGES[stage](self.size, self.rows)
        except ValueError:  # what it depends on is not
            return False
        return all(cell in self.by_cell for cell in cells)

    def cell(self, task: str, updates: int, arm: str) -> Cell:
        """At the chosen learning rate, of the first seed."""
        return Cell(self.size, task, arm, updates, self.learning_rates[task, updates], SEEDS[0])

    def difference(self, task: str, updates: int, first: str, second: str, measure=accuracy) -> Interval:
        """Difference of two arms at the chosen learning rate, over the seeds that both have."""
        return paired(self.runs(task, updates, first), self.runs(task, updates, second), measure)

    def sweep(self, task: str, updates: int, arm: str) -> dict[float, float]:
        """
        Mean accuracy by factor of the chosen learning rate, as far as it was tried.

        Raises:
            `ValueError`: if runs of the stage `sweep` are missing.
        """
        cell = self.cell(task, updates, arm)
        if arm in CONFIRMED_ARMS:
            with suppress(ValueError):
                return sweep_of(self.rows, cell)
        return swept(self.rows, cell)


def holm(ps: list[float]) -> list[float]:
    """P-values corrected for their number, by Holm's step-down method; NaN (no spread, or one run) stays NaN."""
    adjusted, highest = [float("nan")] * len(ps), 0.0
    known = [index for index in np.argsort(ps) if not np.isnan(ps[index])]
    for rank, index in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """Two arms in one setting; `p` is corrected for the number of comparisons that were decided on together."""

    task: str
    updates: int
    first: str
    second: str
    difference: Interval
    p: float


def comparisons(study: Study, runs=Study.runs, pairs=COMPARISONS, settings=SETTINGS) -> list[Comparison]:
    """Comparisons of arms, from the runs that `runs` returns for an arm in a setting."""
    found = [
        (task, updates, first, second, paired(runs(study, task, updates, first), runs(study, task, updates, second)))
        for task, updates in settings
        for first, second in pairs
    ]
    return [Comparison(*row, p) for row, p in zip(found, holm([row[-1].p for row in found]), strict=True)]


def confirmation(study: Study) -> list[Comparison]:
    return comparisons(study, Study.confirmation_runs, CONFIRMED_COMPARISONS)


def common_comparisons(study: Study) -> list[Comparison]:
    return comparisons(study, Study.common_runs, CONFIRMED_COMPARISONS)


def long_comparisons(study: Study, runs=Study.long_runs) -> list[Comparison]:
    return comparisons(study, runs, LONG_COMPARISONS, LONG_SETTINGS)


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


def gradient_points(study: Study, task: str, updates: int) -> list[dict]:
    runs = study.runs(task, updates, "all").values()
    return [point for row in runs for point in row["gradients"] if "norm/all" in point]

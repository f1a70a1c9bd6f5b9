"""What the rows of results say: runs by arm, differences paired by seed, means over settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from studies.which_tokens.outcomes import Interval, holm, interval

from .plan import (
    BATCH_ARMS,
    BATCH_FACTORS,
    BATCH_TASKS,
    EVALUATIONS,
    MAIN_ARMS,
    NEW_SEEDS,
    PAIRS,
    SCOPE_ARMS,
    SCOPE_PAIRS,
    SEEDS,
    SETTINGS,
    SHARED_RATE,
    STAGES,
    TASKS,
    TUNED_ARMS,
    TUNED_SETTINGS,
    UPDATES,
    Cell,
    accuracies_of,
    cell_of,
    chosen_rate,
)


Setting = tuple[str, int]
Runs = dict[int, dict]  # by seed
CURVE_STEPS = (0, *EVALUATIONS, UPDATES)


def accuracy(row: dict) -> float:
    return row["accuracy"]


def mean_over_settings(samples: Sequence[Sequence[float]]) -> Interval:
    """
    The mean of the means of several samples, every sample with the same weight.

    The variance of each is its own, so that settings that differ do not widen the interval; degrees of freedom are
    Welch and Satterthwaite's.

    Args:
        samples (`Sequence[Sequence[float]]`): One sample of at least two values per setting.
    """
    values = [np.asarray(sample, dtype=float) for sample in samples if len(sample) > 1]
    if not values:
        return Interval(float("nan"), float("nan"), 0)
    mean = float(np.mean([sample.mean() for sample in values]))
    variances = np.array([sample.var(ddof=1) / len(sample) for sample in values]) / len(values) ** 2
    n = sum(map(len, values))
    error = float(np.sqrt(variances.sum()))
    if not error:
        return Interval(mean, float("nan"), n)
    freedom = variances.sum() ** 2 / sum(v**2 / (len(s) - 1) for v, s in zip(variances, values, strict=True))
    p = 2 * stats.t.sf(abs(mean) / error, freedom)
    return Interval(mean, float(stats.t.ppf(0.975, freedom) * error), n, float(p))


@dataclass(frozen=True)
class Comparison:
    """
    Two arms.

    Args:
        first, second (`str`): The arms; the difference is of the first minus the second.
        difference ([`Interval`]): In accuracy.
        p (`float`): Corrected for the comparisons of its family.
        settings (`tuple`): Those that have at least two seeds of both arms.
    """

    first: str
    second: str
    difference: Interval
    p: float
    settings: tuple[Setting, ...]

    @property
    def is_resolved(self) -> bool:
        return self.p < 0.05


class Study:
    """
    The rows of results, by what they are asked for.

    Args:
        rows (`list[dict]`): Lines of results.
        starts (`dict[str, dict]`): By task, what the model can do before training.
    """

    def __init__(self, rows: list[dict], starts: dict[str, dict]):
        self.rows, self.starts = rows, starts
        self.by_cell = {cell_of(row): row for row in rows}
        self.accuracies = accuracies_of(rows)

    # ------------------------------------------------------------------ runs

    def _by_seed(self, cell: Cell, seeds: Sequence[int] = SEEDS) -> Runs:
        found = {seed: self.by_cell.get(replace(cell, seed=seed)) for seed in seeds}
        return {seed: row for seed, row in found.items() if row is not None}

    def shared(self, setting: Setting, arm: str, factor: int = 1) -> Runs:
        """Runs at the shared learning rate."""
        return self._by_seed(Cell(*_key(setting, arm), SHARED_RATE, SEEDS[0], factor))

    def own_rate(self, setting: Setting, arm: str) -> float | None:
        """The learning rate that the tuning seeds chose; `None` if they have not."""
        if setting not in TUNED_SETTINGS or arm not in TUNED_ARMS:
            return None
        return chosen_rate(self.accuracies, setting, arm)

    def own(self, setting: Setting, arm: str) -> Runs:
        """Runs at the arm's own learning rate."""
        rate = self.own_rate(setting, arm)
        return {} if rate is None else self._by_seed(Cell(*_key(setting, arm), rate, SEEDS[0]))

    def scope(self, setting: Setting, arm: str) -> Runs:
        """Runs of the stage `scope`."""
        return self._by_seed(Cell(*_key(setting, arm), SHARED_RATE, NEW_SEEDS[0]), NEW_SEEDS)

    # ------------------------------------------------------------------ comparisons

    def differences(self, runs, setting: Setting, first: str, second: str, measure=accuracy) -> list[float]:
        """By seed, over the seeds that both arms have."""
        others = runs(setting, second)
        return [measure(row) - measure(others[seed]) for seed, row in runs(setting, first).items() if seed in others]

    def over_settings(self, runs, pairs=PAIRS, settings=SETTINGS) -> list[Comparison]:
        """A family: one comparison per pair, over all settings that have it."""
        found = []
        for first, second in pairs:
            samples = {each: self.differences(runs, each, first, second) for each in settings}
            samples = {each: sample for each, sample in samples.items() if len(sample) > 1}
            if samples:
                found.append((first, second, mean_over_settings(list(samples.values())), tuple(samples)))
        return _corrected(found)

    def in_setting(self, runs, setting: Setting, pairs=PAIRS) -> list[Comparison]:
        """A family: the pairs of one setting."""
        found = [
            (first, second, interval(sample), (setting,))
            for first, second in pairs
            if len(sample := self.differences(runs, setting, first, second)) > 1
        ]
        return _corrected(found)

    def scopes(self) -> list[Comparison]:
        """The family of the stage `scope`, over the tasks that are whole."""
        settings = self.complete_settings(self.scope, SCOPE_ARMS, [(task, 16) for task in TASKS])
        return self.over_settings(self.scope, SCOPE_PAIRS, settings)

    def batch_factors(self, task: str) -> list[int]:
        """Sizes of the batch at which all arms of the stage `batch` have all seeds."""
        runs = {factor: [self.shared((task, 1), arm, factor) for arm in BATCH_ARMS] for factor in BATCH_FACTORS}
        return [factor for factor, found in runs.items() if all(len(each) == len(SEEDS) for each in found)]

    def lead_by_batch(self, task: str, factor: int, over: str = "random") -> dict[int, float]:
        """By seed, accuracy of forking minus that of another arm, random tokens by default, in a batch of a size."""
        first, second = (self.shared((task, 1), arm, factor) for arm in ("forking", over))
        return {seed: accuracy(row) - accuracy(second[seed]) for seed, row in first.items() if seed in second}

    def change_by_batch(self, factor: int) -> dict[str, tuple[Interval, float]]:
        """By task how much the lead of forking over random tokens changes from batch size 1, and a corrected p."""
        found = {}
        for task in BATCH_TASKS:
            if {1, factor} <= set(self.batch_factors(task)):
                small, large = self.lead_by_batch(task, 1), self.lead_by_batch(task, factor)
                found[task] = interval([large[seed] - small[seed] for seed in SEEDS])
        # A task that is not there yet counts in the correction.
        ps = holm([each.p for each in found.values()] + [1.0] * (len(BATCH_TASKS) - len(found)))
        return {task: (each, p) for (task, each), p in zip(found.items(), ps, strict=False)}

    # ------------------------------------------------------------------ measures

    def mean(self, runs: Runs, measure: Callable[[dict], float | None]) -> float:
        """Mean over runs of a measure, of those that have it."""
        values = [value for row in runs.values() if (value := measure(row)) is not None]
        return float(np.mean(values)) if values else float("nan")

    def area_under_curve(self, row: dict) -> float:
        """Mean held-out accuracy over training, from the start of the task to the end."""
        return float(np.trapezoid(self.curve(row, "accuracy"), CURVE_STEPS) / UPDATES)

    def curve(self, row: dict, measure: str) -> list[float]:
        """A measure on held-out problems at `CURVE_STEPS`."""
        between = [each[measure] for each in row["evaluations"]]
        return [self.starts[row["task"]][measure], *between, row[measure]]

    # ------------------------------------------------------------------ what is there

    def progress(self) -> dict[str, tuple[int, int]]:
        """By stage how many of its runs there are, and how many there have to be as far as is known."""
        found = {}
        for stage, cells_of_stage in STAGES.items():
            cells = cells_of_stage(self.rows)
            found[stage] = (sum(cell in self.by_cell for cell in cells), len(cells))
        return found

    def missing(self) -> list[str]:
        """Stages that are not complete. Those that depend on a stage that is not complete are not either."""
        names, follows = [], {"finalists": "tune", "own": "finalists"}
        for stage, (there, wanted) in self.progress().items():
            if there < wanted or follows.get(stage) in names:
                names.append(stage)
        return names

    def complete_settings(self, runs, arms: Sequence[str] = MAIN_ARMS, settings=SETTINGS) -> list[Setting]:
        """Settings in which all arms have all seeds."""
        return [each for each in settings if all(len(runs(each, arm)) == len(SEEDS) for arm in arms)]


def _key(setting: Setting, arm: str) -> tuple[str, str, int]:
    task, updates = setting
    return task, arm, updates


def _corrected(found: list[tuple]) -> list[Comparison]:
    ps = holm([row[2].p for row in found])
    return [
        Comparison(first, second, diff, p, where) for (first, second, diff, where), p in zip(found, ps, strict=True)
    ]


def effective_fraction(row: dict) -> float | None:
    """Mean over training: 1 for equal weights of all tokens."""
    known = [value for value in row["training"]["effective_fraction"] if value is not None]
    return sum(known) / len(known) if known else None

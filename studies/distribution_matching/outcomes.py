"""What the lines of results say: runs by arm, differences to GRPO by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from studies.which_tokens.outcomes import Interval, holm, interval

from .plan import (
    BASELINE,
    BETAS,
    COMMON,
    COMMON_RATE,
    COUNTERPARTS,
    SEEDS,
    STAGES,
    Cell,
    cell_of,
    chosen_learning_rates,
    learning_rate_of,
)


Configuration = tuple[str, float]  # arm and KL coefficient
Runs = Callable[[str, float], dict[int, dict]]
CONFIGURATIONS = tuple((arm, beta) for arm, betas in BETAS.items() for beta in betas)
OTHERS = tuple(each for each in CONFIGURATIONS if each != BASELINE)


@dataclass(frozen=True)
class Comparison:
    """An arm minus another one, over seeds; `p` is corrected for the number of comparisons of its family."""

    arm: str
    beta: float
    difference: Interval
    p: float

    @property
    def is_resolved(self) -> bool:
        return self.p < 0.05

    @property
    def direction(self) -> int:
        """1 or -1 where it is resolved, else 0."""
        return (1 if self.difference.mean > 0 else -1) if self.is_resolved else 0


class Study:
    """
    The lines of results, by what they are asked for.

    Args:
        rows (`Sequence[dict]`): Lines of results.
        start (`dict`): What the model can do before training.
    """

    def __init__(self, rows: Sequence[dict], start: dict):
        self.rows, self.start = rows, start
        self.learning_rates = chosen_learning_rates(rows)
        self.by_cell = {cell_of(row): row for row in rows}

    def runs(self, arm: str, beta: float) -> dict[int, dict]:
        """Runs by seed, at the learning rate of the arm."""
        return self._runs(arm, beta, learning_rate_of(arm, self.learning_rates))

    def common_runs(self, arm: str, beta: float) -> dict[int, dict]:
        """Runs by seed, at the learning rate of the stage `common`."""
        return self._runs(arm, beta, COMMON_RATE)

    def _runs(self, arm: str, beta: float, rate: float | None) -> dict[int, dict]:
        found = {seed: self.by_cell.get(Cell(arm, beta, rate, seed)) for seed in SEEDS} if rate else {}
        return {seed: row for seed, row in found.items() if row is not None}

    def is_complete(self) -> bool:
        """Whether every run of the plan is there."""
        return all(cell in self.by_cell for stage in STAGES.values() for cell in stage(self.rows))

    def values(self, arm: str, beta: float, measure: str) -> Interval:
        """Mean over seeds of a measure."""
        return interval([row[measure] for row in self.runs(arm, beta).values()])

    def common_values(self, arm: str, beta: float, measure: str) -> Interval:
        """Like [`values`], of [`common_runs`]."""
        return interval([row[measure] for row in self.common_runs(arm, beta).values()])

    def comparisons(self, measure: str) -> list[Comparison]:
        """All arms but GRPO, minus GRPO. These of one measure are the family that is corrected."""
        return self._compare([(self.runs, each, self.runs, BASELINE) for each in OTHERS], measure)

    def against_common(self, measure: str) -> list[Comparison]:
        """Like [`comparisons`], minus GRPO at the learning rate of the stage `common`."""
        return self._compare([(self.runs, each, self.common_runs, BASELINE) for each in OTHERS], measure)

    def common_comparisons(self, measure: str) -> list[Comparison]:
        """Arms at one learning rate, minus GRPO; again a family."""
        others = [each for each in COMMON if each != BASELINE]
        return self._compare([(self.common_runs, each, self.common_runs, BASELINE) for each in others], measure)

    def counterparts(self, measure: str) -> list[Comparison]:
        """Balance minus GRPO with the KL coefficient that pulls as hard; again a family."""
        return self._compare([(self.runs, each, self.runs, other) for each, other in COUNTERPARTS.items()], measure)

    def _compare(self, pairs: list[tuple[Runs, Configuration, Runs, Configuration]], measure: str) -> list[Comparison]:
        """Differences over the seeds that both have."""
        found = []
        for runs, each, other_runs, other in pairs:
            against = other_runs(*other)
            both = [(row, against[seed]) for seed, row in runs(*each).items() if seed in against]
            found.append(interval([row[measure] - twin[measure] for row, twin in both]))
        ps = holm([difference.p for difference in found])
        return [Comparison(*pair[1], diff, p) for pair, diff, p in zip(pairs, found, ps, strict=True)]

    def curve(self, arm: str, beta: float, measure: str) -> list[float]:
        """Means over seeds at the start, at each evaluation of a run, and at its end."""
        points = [
            [*(each[measure] for each in row["evaluations"]), row[measure]] for row in self.runs(arm, beta).values()
        ]
        return [self.start[measure], *(sum(values) / len(values) for values in zip(*points, strict=True))]

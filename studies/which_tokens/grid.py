"""The cells of the study: which runs there are, and in which order. One run is one cell."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


# Settings of ForkingGRPOConfig, by the name of the arm. Everything else is the same for all of them.
ARMS = {
    "all": {"top_entropy_quantile": 1.0},
    "top20": {"top_entropy_quantile": 0.2},
    "random20": {"top_entropy_quantile": 0.2, "token_selection": "random"},
    "bottom80": {"top_entropy_quantile": 0.2, "token_selection": "low_entropy"},
    "top10": {"top_entropy_quantile": 0.1},
    "top50": {"top_entropy_quantile": 0.5},
    # On the task VARIANTS_TASK only
    "top20-local": {"top_entropy_quantile": 0.2, "entropy_threshold_scope": "local"},
    "top20-sequence": {"top_entropy_quantile": 0.2, "entropy_threshold_scope": "sequence"},
    "top20-denominator-all": {"top_entropy_quantile": 0.2, "loss_denominator": "all"},
    "random20-denominator-all": {
        "top_entropy_quantile": 0.2,
        "token_selection": "random",
        "loss_denominator": "all",
    },
}
MAIN_ARMS = ("all", "top20", "random20", "bottom80", "top50", "top10")
VARIANTS = tuple(arm for arm in ARMS if arm not in MAIN_ARMS)
VARIANTS_TASK = "digit_sums"
TASKS = ("digit_sums", "reach_target")
UPDATES_PER_BATCH = (1, 16)  # the second is the paper's
SETTINGS = tuple((task, updates) for task in TASKS for updates in UPDATES_PER_BATCH)
LONG_SETTINGS = tuple(setting for setting in SETTINGS if setting[1] == max(UPDATES_PER_BATCH))

SEEDS = (0, 1, 2, 3, 4)
SWEEP_SEEDS = (0, 1)
TUNING_SEEDS = (100, 101)  # not those of the results, so that the choice does not favour the arm it is made on
LEARNING_RATES = (1.25e-4, 2.5e-4, 5e-4)  # at 1e-3 a trial unlearned the task
SWEEP_FACTORS = (0.5, 2.0)  # times the chosen learning rate, which is the third value
EDGE_FACTORS = {0.5: 0.25, 2.0: 4.0}  # the fourth, where the best of three was the first or the last
CONFIRMED_ARMS = ("all", "top20", "random20")
LONG_ARMS = ("all", "top20")
CONFIRMATION_SEEDS = (5, 6, 7, 8, 9)  # on which nothing was chosen


@dataclass(frozen=True)
class Cell:
    """
    One run.

    Args:
        size (`str`): Size of the model, a key of [`SIZES`].
        task (`str`): One of `TASKS`.
        arm (`str`): A key of `ARMS`.
        updates_per_batch (`int`): Optimizer steps on one batch of rollouts.
        learning_rate (`float`): Peak learning rate.
        seed (`int`): Seed of the problems, their order, the sampling and a random selection.
    """

    size: str
    task: str
    arm: str
    updates_per_batch: int
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.size} {self.task} {self.arm} u{self.updates_per_batch} lr{self.learning_rate:g} seed{self.seed}"


def cell_of(row: dict) -> Cell:
    """The cell that a row of results belongs to."""
    return Cell(**{name: row[name] for name in Cell.__dataclass_fields__})


def tuning_cells(size: str, rows: Sequence[dict] = (), tasks: Sequence[str] = TASKS) -> list[Cell]:
    """Stage `tune`: learning rates for the arm on all tokens, from which one is chosen per task and regime."""
    return [
        Cell(size, task, "all", updates, learning_rate, seed)
        for seed in TUNING_SEEDS
        for task in tasks
        for updates in UPDATES_PER_BATCH
        for learning_rate in LEARNING_RATES
    ]


def main_cells(size: str, rows: Sequence[dict], tasks: Sequence[str] = TASKS) -> list[Cell]:
    """Stage `arms`: seed by seed, so that a study that is cut off has whole seeds."""
    learning_rates = chosen_learning_rates(rows, size, tasks)
    return [
        Cell(size, task, arm, updates, learning_rate, seed)
        for seed in SEEDS
        for (task, updates), learning_rate in learning_rates.items()
        for arm in MAIN_ARMS
    ]


def sweep_cells(size: str, rows: Sequence[dict], tasks: Sequence[str] = TASKS) -> list[Cell]:
    """Stage `sweep`: two more learning rates, so that no arm wins by its step size."""
    return [
        replace(cell, learning_rate=times(factor, cell.learning_rate))
        for arm in MAIN_ARMS
        for cell in main_cells(size, rows, tasks)
        for factor in SWEEP_FACTORS
        if cell.seed in SWEEP_SEEDS and cell.arm == arm
    ]


def edge_cells(size: str, rows: Sequence[dict], tasks: Sequence[str] = TASKS) -> list[Cell]:
    """Stage `edges`: for the arms to be confirmed, one step further where the sweep's best value was its outermost."""
    cells = []
    for cell in main_cells(size, rows, tasks):
        if cell.seed in SWEEP_SEEDS and cell.arm in CONFIRMED_ARMS:
            best = best_factor(swept(rows, cell))
            if best in EDGE_FACTORS:
                cells.append(replace(cell, learning_rate=times(EDGE_FACTORS[best], cell.learning_rate)))
    return cells


def confirmation_cells(size: str, rows: Sequence[dict], tasks: Sequence[str] = TASKS) -> list[Cell]:
    """
    Stage `confirm`: each arm at the learning rate that was the best one for it, on seeds that had no part in the
    choice. The best of several on the seeds it is chosen by flatters the arm that varies most.
    """
    return [
        replace(cell, learning_rate=best_learning_rate(rows, cell), seed=seed)
        for seed in CONFIRMATION_SEEDS
        for cell in main_cells(size, rows, tasks)
        if cell.seed == SEEDS[0] and cell.arm in CONFIRMED_ARMS
    ]


def at_common_rate(cells: list[Cell]) -> list[Cell]:
    """Cells of [`confirmation_cells`] at the learning rate that was the best one for the top 20 %."""
    rates = {(cell.task, cell.updates_per_batch): cell.learning_rate for cell in cells if cell.arm == "top20"}
    return [replace(cell, learning_rate=rates[cell.task, cell.updates_per_batch]) for cell in cells]


def common_cells(size: str, rows: Sequence[dict], tasks: Sequence[str] = TASKS) -> list[Cell]:
    """Stage `common`: the arms of `confirm` at the learning rate of the top 20 %, where their own is another."""
    cells = confirmation_cells(size, rows, tasks)
    return [cell for cell in at_common_rate(cells) if cell not in cells]


def long_cells(size: str, rows: Sequence[dict], tasks: Sequence[str] = TASKS) -> list[Cell]:
    """Stage `long`: as `common` and `confirm`, with the most updates per batch, and four times as many batches."""
    own = confirmation_cells(size, rows, tasks)
    return [
        replace(cell, size=f"{size}-long")
        for cell in dict.fromkeys([*at_common_rate(own), *own])
        if (cell.task, cell.updates_per_batch) in LONG_SETTINGS and cell.arm in LONG_ARMS
    ]


def variant_cells(size: str, rows: Sequence[dict], tasks: Sequence[str] = TASKS) -> list[Cell]:
    """
    Stage `variants`: threshold scopes and denominators, on one task.

    A run has one micro-batch per update. With one update per batch the scope `local` is `batch`, and is not run.
    """
    return [
        replace(cell, arm=arm)
        for cell in main_cells(size, rows, tasks)
        for arm in VARIANTS
        if cell.task == VARIANTS_TASK and cell.arm == "top20" and (cell.updates_per_batch, arm) != (1, "top20-local")
    ]


# In the order in which they are run. From the second on they depend on results: `ValueError` if those are missing.
STAGES = {
    "tune": tuning_cells,
    "arms": main_cells,
    "sweep": sweep_cells,
    "edges": edge_cells,
    "confirm": confirmation_cells,
    "common": common_cells,
    "long": long_cells,
    "variants": variant_cells,
}


def times(factor: float, learning_rate: float) -> float:
    return float(f"{factor * learning_rate:.3g}")


def swept(rows: Sequence[dict], cell: Cell, factors: Sequence[float] = (1.0, *SWEEP_FACTORS)) -> dict[float, float]:
    """
    Mean accuracy by factor of the learning rate of a cell, over the same seeds for all factors.

    Those of the sweep, and those of the tuning where every factor has them: two seeds are few to choose by.

    Raises:
        `ValueError`: if a run on `SWEEP_SEEDS` is missing.
    """
    accuracies = {cell_of(row): row["accuracy"] for row in rows}

    def accuracy(factor: float, seed: int) -> float | None:
        return accuracies.get(replace(cell, learning_rate=times(factor, cell.learning_rate), seed=seed))

    candidates = (*SWEEP_SEEDS, *TUNING_SEEDS)
    seeds = [seed for seed in candidates if all(accuracy(factor, seed) is not None for factor in factors)]
    if not set(SWEEP_SEEDS) <= set(seeds):
        raise ValueError(
            f"Runs of {cell.arm} on {cell.task} are missing at {' or '.join(map(str, factors))} times the learning "
            f"rate {cell.learning_rate:g}: --stage arms, sweep and edges come first, in this order."
        )
    return {factor: sum(accuracy(factor, seed) for seed in seeds) / len(seeds) for factor in factors}


def sweep_of(rows: Sequence[dict], cell: Cell) -> dict[float, float]:
    """What was tried for an arm: the three values, and the one beyond the edge where there had to be one."""
    means = swept(rows, cell)
    best = best_factor(means)
    return swept(rows, cell, (*means, EDGE_FACTORS[best])) if best in EDGE_FACTORS else means


def best_factor(means: dict[float, float]) -> float:
    return max(means, key=lambda factor: means[factor])


def best_learning_rate(rows: Sequence[dict], cell: Cell) -> float:
    """The best learning rate of those tried for the arm of a cell."""
    return times(best_factor(sweep_of(rows, cell)), cell.learning_rate)


def chosen_learning_rates(
    rows: Sequence[dict], size: str, tasks: Sequence[str] = TASKS
) -> dict[tuple[str, int], float]:
    """
    Per task and regime the learning rate of highest mean held-out accuracy over the tuning runs on all tokens.

    Raises:
        `ValueError`: if a tuning run is missing.
    """
    accuracies = {cell_of(row): row["accuracy"] for row in rows}
    cells = tuning_cells(size, rows, tasks)
    missing = [cell for cell in cells if cell not in accuracies]
    if missing:
        raise ValueError(
            f"The learning rate is not chosen yet: {len(missing)} runs of --stage tune are missing, such as "
            f"{str(missing[0])!r}."
        )
    means: dict[tuple[str, int], dict[float, float]] = {}
    for cell in cells:
        rates = means.setdefault((cell.task, cell.updates_per_batch), dict.fromkeys(LEARNING_RATES, 0.0))
        rates[cell.learning_rate] += accuracies[cell] / len(TUNING_SEEDS)
    return {key: max(rates, key=lambda rate: rates[rate]) for key, rates in means.items()}

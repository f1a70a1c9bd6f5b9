"""
The plan: which runs there are, in which order, what they train with and what is compared. It is older than any line of
results, each of which names the commit that it was made with.

**Arms** are the presets of `configs/credit`, beside training on all tokens; everything else is the same for all of
them, by `runs.configuration`.

**Learning rates.** Every arm is run at one shared rate, the one that the first study found best for all tokens in
three of its four settings. In `TUNED_SETTINGS` every arm also has a rate of its own: of three values, all are run on
two seeds, and the best two on two others; the best one by the mean of accuracy over the four is taken. No seed of the
results has a part in this. A rate that is best on four seeds but the worst of three on the first two is missed; this
saves a sixth of the runs. The test problems are those of the results.

**Comparisons.** The measure is accuracy on held-out problems, the mean of 8 samples each, after the last update;
differences are paired by seed. `PAIRS` are each rule minus all tokens, and each rule minus its twin that takes as many
tokens or rollouts by chance. The family that a claim rests on has one test per pair: the mean over settings of the
difference, with the seeds of each setting as its sample (standard errors are combined over settings; degrees of
freedom by Welch and Satterthwaite), corrected for the number of pairs (Holm). There is one family for the shared rate
and one for own rates. In each setting the ranking shows the same pairs by t-tests of five seeds, corrected within the
setting. Area under the curve, pass@8, entropy, effective fraction, tokens with gradient and processor seconds are
shown without tests.

**Batch size.** Does the deficit of random tokens vanish with the size of the batch, as noise would, or stay, as
missing content would? `BATCH_ARMS` at 4 and 16 times the prompts per update, the same number of updates and the shared
rate, which for large batches is not tuned. Tested: the difference of forking and random tokens at factor 16 minus that
at factor 1, by seed, per task; corrected for the number of tasks.

**Scope.** With 16 updates per batch, on new seeds: the preset with the threshold of each update (`local`), and local
forking, against forking and all tokens; averaged over tasks as above, corrected for these comparisons.

**Budget.** `BUDGET` processor seconds, eight hours of two cores. `cost` counts what the stages take at
`SECONDS_PER_RUN`. The order is `ORDER`, and within it that of `SETTINGS`, so that a study that is cut off has whole
settings. If the time does not suffice, what comes last in that order is left out: learning rates of one's own, from
the last of their settings on. Seeds are never left out.

**Trials.** What was looked at before, on seed 200, which counts nowhere, with 48 updates of one per batch on all
tokens unless said otherwise. `chain_sum`: accuracy 0.19 before training, 0.85 at 2.5e-4 and 0.89 at 5e-4; STAPO with
its own bounds made the same run as all tokens to the last digit. `countdown`, in a first form with 0.22 before
training, had 0.28 at 2.5e-4. Demonstrations were then given signs that look further ahead, and more that stop too
early: 0.11 before training, 0.28 at 2.5e-4, and 0.24 with 16 updates per batch. As 0.11 was too low a start, there are
fewer of those that stop too early now; this last form was not tried. `digit_sums` and `reach_target` are those of the
first study. A run took 30 to 38 processor seconds with one update per batch and 30 with 16, on a computer that had
other work to do. When eight runs of the first seed of the stage `shared` had been made, at 34 to 43 processor seconds
each, entropy on held-out problems was added to what is measured, and the stages of learning rates were put in order of
settings instead of all of `tune` first. The eight were made again; nothing else was changed.

**Another order.** When three settings were whole (210 runs) and four runs of the next were there, it was plain that
the computer would be had for some hours at a time only. So that each question has an answer early, what was left was
put in another order: the fourth setting of the stage `shared`, with which each task is there once and each regime
twice; then `scope`, and `batch` with the fifteen runs of the stage `shared` that it starts from; then the other
settings, and learning rates. What the runs had found had no part in this. Which runs there are and what is tested
stayed as it was.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


SIZE = "tiny"
UPDATES = 48  # optimizer steps of every run
EVALUATIONS = (12, 24, 36)  # updates after which a run is measured on the way: the curve
CURVE_PROBLEMS = 256  # of the test problems, one sample each
NUM_TEST = 256  # held-out problems, the same for every run of a task
NUM_SAMPLES = 8  # of each, after the last update

# Settings of ForkingGRPOConfig, by the name of the arm. Everything else is the same for all of them. The presets of
# `configs/credit` are taken as they are, but for two. STAPO has bounds for a vocabulary of 150,000 tokens; with
# 40, no token of a trial was below them, and the run was that of all tokens. It has a higher bound of the probability
# here, and the quantile of the paper's setup. As to the window of PEPO, completions have at most 56 tokens: 101 would
# be the whole of each; 11 tokens are about one step of a derivation. Local forking has no such parameter, it ranks
# tokens here by their entropy against that of their whole completion.
ARMS: dict[str, dict] = {
    "all": {"top_entropy_quantile": 1.0},
    "forking": {"token_credit": "forking"},
    "random": {"token_credit": "random"},
    "pepo": {"token_credit": {"proportional": {"score": "local_entropy", "window": 11, "rows": "positive"}}},
    "temporal_forking": {"token_credit": "temporal_forking"},
    "temporal_random": {"token_credit": "temporal_random"},
    "high_entropy_rollouts": {"token_credit": "high_entropy_rollouts"},
    "random_rollouts": {"token_credit": "random_rollouts"},
    "entropy_advantage": {"token_credit": "entropy_advantage"},
    "gmts": {"token_credit": "gmts"},
    "temporal_position": {"token_credit": "temporal_position"},
    "nat": {"token_credit": "nat"},
    "local_forking": {"token_credit": "local_forking"},
    "stapo": {"token_credit": {"spurious": {"probability": 0.05, "entropy_quantile": 0.8}}},
    # For the stage `scope` only: the threshold of each update by the policy of that update
    "forking_at_update": {"token_credit": "forking", "entropy_threshold_scope": "local"},
}
MAIN_ARMS = tuple(arm for arm in ARMS if arm != "forking_at_update")
TASKS = ("digit_sums", "reach_target", "chain_sum", "countdown")
UPDATES_PER_BATCH = (1, 16)  # the second is that of "Beyond the 80/20 Rule"
# Tasks and regimes, in the order in which they are run: every task and every regime is in the first half.
SETTINGS = (
    ("digit_sums", 1),
    ("reach_target", 16),
    ("chain_sum", 1),
    ("countdown", 16),
    ("reach_target", 1),
    ("digit_sums", 16),
    ("countdown", 1),
    ("chain_sum", 16),
)
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = ((100, 101), (102, 103))  # every rate on the first two, the best two rates on the others
NEW_SEEDS = (5, 6, 7, 8, 9)  # of the stage `scope`
TUNED_SETTINGS = SETTINGS[:4]  # each task once, each regime twice: the others would not fit into the budget
# Its veto is on so few tokens that a learning rate of its own would be that of all tokens.
UNTUNED_ARMS = ("stapo",)
TUNED_ARMS = tuple(arm for arm in MAIN_ARMS if arm not in UNTUNED_ARMS)
LEARNING_RATES = (1.25e-4, 2.5e-4, 5e-4)
SHARED_RATE = 2.5e-4

BATCH_FACTORS = (1, 4, 16)  # times 8 prompts per update
BATCH_ARMS = ("all", "forking", "random")
BATCH_TASKS = ("digit_sums", "reach_target")
SCOPE_ARMS = ("all", "forking", "forking_at_update", "local_forking")
SCOPE_PAIRS = (
    ("forking_at_update", "forking"),
    ("local_forking", "forking"),
    ("forking_at_update", "all"),
    ("local_forking", "all"),
    ("forking", "all"),
)

BUDGET = 57_600  # processor seconds
SECONDS_PER_RUN = {1: 30, 4: 90, 16: 330}  # of the processor, by the factor of the batch

# Pairs of arms, each a rule and what it is compared with. `TWINS` select as many tokens, or rollouts, by chance.
TWINS = {
    "forking": "random",
    "gmts": "random",
    "local_forking": "random",
    "temporal_forking": "temporal_random",
    "temporal_position": "temporal_random",
    "high_entropy_rollouts": "random_rollouts",
}
AGAINST_ALL = tuple((arm, "all") for arm in MAIN_ARMS if arm != "all")
AGAINST_TWINS = tuple(TWINS.items())
PAIRS = (*AGAINST_ALL, *AGAINST_TWINS)


@dataclass(frozen=True)
class Cell:
    """
    One run.

    Args:
        task (`str`): One of `TASKS`.
        arm (`str`): A key of `ARMS`.
        updates_per_batch (`int`): Optimizer steps on one batch of rollouts.
        learning_rate (`float`): Peak learning rate.
        seed (`int`): Seed of the problems, their order, the sampling and a random selection.
        batch_factor (`int`, *optional*, defaults to `1`): Times 8 prompts per update.
    """

    task: str
    arm: str
    updates_per_batch: int
    learning_rate: float
    seed: int
    batch_factor: int = 1

    def __str__(self) -> str:
        batch = f" x{self.batch_factor}" if self.batch_factor > 1 else ""
        return f"{self.task} {self.arm} u{self.updates_per_batch} lr{self.learning_rate:g} seed{self.seed}{batch}"


def cell_of(row: dict) -> Cell:
    """The cell that a line of results belongs to."""
    return Cell(**{name: row[name] for name in Cell.__dataclass_fields__})


def cells_of(setting: tuple[str, int], arms: Sequence[str], rates: Sequence[float], seeds: Sequence[int]):
    """Runs in one setting, seed by seed, so that a stage that is cut off has whole seeds."""
    task, updates = setting
    return [Cell(task, arm, updates, rate, seed) for seed in seeds for arm in arms for rate in rates]


def shared_cells(rows: Sequence[dict] = ()) -> list[Cell]:
    """Stage `shared`: every arm at one learning rate, setting by setting."""
    return [cell for setting in SETTINGS for cell in cells_of(setting, MAIN_ARMS, [SHARED_RATE], SEEDS)]


def batch_cells(rows: Sequence[dict] = ()) -> list[Cell]:
    """Stage `batch`: larger batches, with one update each; those of factor 1 are in the stage `shared`."""
    return [
        Cell(task, arm, 1, SHARED_RATE, seed, factor)
        for task in BATCH_TASKS
        for factor in BATCH_FACTORS[1:]
        for seed in SEEDS
        for arm in BATCH_ARMS
    ]


def scope_cells(rows: Sequence[dict] = ()) -> list[Cell]:
    """Stage `scope`: what the threshold, or the score, is taken over, with 16 updates per batch on new seeds."""
    return [cell for task in TASKS for cell in cells_of((task, 16), SCOPE_ARMS, [SHARED_RATE], NEW_SEEDS)]


def tuning_cells(rows: Sequence[dict] = ()) -> list[Cell]:
    """Stage `tune`: every arm at every learning rate on the first two tuning seeds."""
    return [
        cell for setting in TUNED_SETTINGS for cell in cells_of(setting, TUNED_ARMS, LEARNING_RATES, TUNING_SEEDS[0])
    ]


def finalist_cells(rows: Sequence[dict]) -> list[Cell]:
    """Stage `finalists`: the two rates that were best in the stage `tune`, on the other two seeds; as far as known."""
    accuracies = accuracies_of(rows)
    return [
        cell
        for setting, arm in itertools.product(TUNED_SETTINGS, TUNED_ARMS)
        for cell in cells_of(setting, [arm], finalists(accuracies, setting, arm), TUNING_SEEDS[1])
    ]


def own_cells(rows: Sequence[dict]) -> list[Cell]:
    """
    Stage `own`: every arm at the learning rate that four seeds chose for it, where that is not the shared one; as far
    as known.
    """
    accuracies = accuracies_of(rows)
    return [
        cell
        for setting, arm in itertools.product(TUNED_SETTINGS, TUNED_ARMS)
        if (rate := chosen_rate(accuracies, setting, arm)) not in (None, SHARED_RATE)
        for cell in cells_of(setting, [arm], [rate], SEEDS)
    ]


STAGES = {
    "shared": shared_cells,
    "batch": batch_cells,
    "scope": scope_cells,
    "tune": tuning_cells,
    "finalists": finalist_cells,
    "own": own_cells,
}


# What is run, one after the other: a stage, and the setting that it is of; without one it is of all.
ORDER: tuple[tuple[str, tuple[str, int] | None], ...] = (
    *((stage, None) for stage in ("shared", "batch", "scope")),
    *((stage, setting) for setting in TUNED_SETTINGS for stage in ("tune", "finalists", "own")),
)


def accuracies_of(rows: Sequence[dict]) -> dict[Cell, float]:
    return {cell_of(row): row["accuracy"] for row in rows}


def _means(accuracies: dict[Cell, float], setting, arm: str, rates: Sequence[float], seeds: Sequence[int]):
    """Mean accuracy by learning rate; `None` if a run is missing."""
    means = {}
    for rate in rates:
        found = [accuracies.get(cell) for cell in cells_of(setting, [arm], [rate], seeds)]
        if None in found:
            return None
        means[rate] = sum(found) / len(found)
    return means


def finalists(accuracies: dict[Cell, float], setting: tuple[str, int], arm: str) -> list[float]:
    """The two learning rates of highest mean accuracy on the first tuning seeds, rising; none if not known."""
    means = _means(accuracies, setting, arm, LEARNING_RATES, TUNING_SEEDS[0])
    return sorted(sorted(means, key=lambda rate: -means[rate])[:2]) if means else []


def chosen_rate(accuracies: dict[Cell, float], setting: tuple[str, int], arm: str) -> float | None:
    """The finalist of highest mean accuracy on all four tuning seeds; `None` if not known."""
    rates = finalists(accuracies, setting, arm)
    means = _means(accuracies, setting, arm, rates, [seed for pair in TUNING_SEEDS for seed in pair])
    return max(means, key=lambda rate: means[rate]) if means else None


def cost(cells: Sequence[Cell]) -> int:
    """Expected processor seconds."""
    return sum(SECONDS_PER_RUN[cell.batch_factor] for cell in cells)

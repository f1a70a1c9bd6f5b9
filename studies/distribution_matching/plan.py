"""
The plan: which runs there are, what they train with, and what is compared. It was written before the runs, but for
four of 64 updates with GRPO on the seeds 100 and 101, and three trials on the seed 200, by which it was cut to the
time that there is: to 48 updates, one tuning seed, and the learning rates 2.5e-4 to 1e-3 in place of 1.25e-4 to 5e-4,
as the highest was the best of them.

Learning rates are chosen per arm on `TUNING_SEEDS`, by accuracy alone, at one KL coefficient. The results are of
`SEEDS`, at every KL coefficient of the arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass


TASK = "reach_target"
UPDATES = 48  # optimizer steps, one per batch of rollouts
EVALUATIONS = (24, 48)  # after these updates
NUM_TEST = 256  # held-out problems, the same for every run
NUM_SAMPLES = 16  # of each, at temperature 1
PARTITION_SAMPLES = 16  # of the reference, for each training problem

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (100,)
LEARNING_RATES = (2.5e-4, 5e-4, 1e-3)

_BALANCE = {
    "objective": "trajectory_balance",
    "length_normalized": True,
    # The same rewards for both partitions. With the one of the group, its mean reward cancels.
    "balance_reward": "reward",
    "loss_denominator": "all",
}
# Settings of ForkingGRPOConfig, by the name of the arm. Everything else is the same for all of them.
ARMS = {
    "grpo": {"top_entropy_quantile": 1.0},
    "forking": {"top_entropy_quantile": 0.2},
    "grpo_kl": {"top_entropy_quantile": 1.0},
    "balance_group": {"top_entropy_quantile": 1.0, "partition": "group", **_BALANCE},
    "balance_offline": {"top_entropy_quantile": 1.0, "partition": "offline", **_BALANCE},
    "balance_group_forking": {"top_entropy_quantile": 0.2, "partition": "group", **_BALANCE},
}
FLOWRL_BETA = 0.0667  # 1/15
# KL coefficients of the arm. Times a length of some 38 tokens, the log-ratio of a length-normalised residual weighs
# beta / 38 against a reward; GRPO divides rewards by a standard deviation of some 0.45, so that a KL coefficient of
# beta / 17 pulls as hard. GRPO at 1/15 and 1/3 is therefore the counterpart of balance at 1 and 5. That of balance at
# FlowRL's 1/15 is GRPO without a KL term, but for 1/250.
BETAS = {
    "grpo": (0.0,),
    "forking": (0.0,),
    "grpo_kl": (FLOWRL_BETA, 0.333),
    "balance_group": (FLOWRL_BETA, 1.0, 5.0),
    "balance_offline": (1.0, 5.0),
    "balance_group_forking": (1.0,),
}
COUNTERPARTS = {
    ("balance_group", FLOWRL_BETA): ("grpo", 0.0),
    ("balance_group", 1.0): ("grpo_kl", FLOWRL_BETA),
    ("balance_group", 5.0): ("grpo_kl", 0.333),
}
TUNING_BETAS = {"grpo": 0.0, "forking": 0.0, "grpo_kl": FLOWRL_BETA, "balance_group": 1.0, "balance_offline": 1.0}
RATE_OF = {"balance_group_forking": "balance_group"}  # not tuned: has the learning rate of the other

BASELINE = ("grpo", 0.0)
COMMON_RATE = 2.5e-4
COMMON = (
    BASELINE,
    ("forking", 0.0),
    ("grpo_kl", FLOWRL_BETA),
    ("balance_group", 1.0),
    ("balance_offline", 1.0),
    ("balance_offline", 5.0),
)

# Each of these, minus GRPO on the same seed, is a family of comparisons that is corrected by Holm: one per arm and KL
# coefficient. `accuracy` is avg@1.
MEASURES = ("accuracy", "pass@4", "pass@16", "distinct", "agreement")


@dataclass(frozen=True)
class Cell:
    """
    One run.

    Args:
        arm (`str`): A key of `ARMS`.
        beta (`float`): KL coefficient.
        learning_rate (`float`): Peak learning rate.
        seed (`int`): Seed of the problems, their order and the sampling.
    """

    arm: str
    beta: float
    learning_rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.arm} beta{self.beta:g} lr{self.learning_rate:g} seed{self.seed}"


def cell_of(row: dict) -> Cell:
    """The cell that a line of results belongs to."""
    return Cell(**{name: row[name] for name in Cell.__dataclass_fields__})


def tuning_cells(rows: Sequence[dict] = ()) -> list[Cell]:
    """Stage `tune`: learning rates, arm by arm."""
    return [
        Cell(arm, beta, rate, seed)
        for arm, beta in TUNING_BETAS.items()
        for seed in TUNING_SEEDS
        for rate in LEARNING_RATES
    ]


def main_cells(rows: Sequence[dict]) -> list[Cell]:
    """
    Stage `arms`, of the arms whose learning rate is chosen: seed by seed, so that a study that is cut off has whole
    seeds.
    """
    rates = chosen_learning_rates(rows)
    return [
        Cell(arm, beta, rate, seed)
        for seed in SEEDS
        for arm, betas in BETAS.items()
        for beta in betas
        if (rate := learning_rate_of(arm, rates)) is not None
    ]


def learning_rate_of(arm: str, rates: dict[str, float]) -> float | None:
    """That of the arm, or of the arm that was tuned in its place; `None` if it is not chosen yet."""
    return rates.get(RATE_OF.get(arm, arm))


def chosen_learning_rates(rows: Sequence[dict]) -> dict[str, float]:
    """By arm the learning rate of highest mean accuracy over the tuning seeds; of arms that have all of those runs."""
    accuracies = {cell_of(row): row["accuracy"] for row in rows}
    means: dict[str, dict[float, float]] = {}
    for arm, beta in TUNING_BETAS.items():
        cells = {rate: [Cell(arm, beta, rate, seed) for seed in TUNING_SEEDS] for rate in LEARNING_RATES}
        if all(cell in accuracies for found in cells.values() for cell in found):
            means[arm] = {rate: sum(accuracies[cell] for cell in found) for rate, found in cells.items()}
    return {arm: max(sums, key=lambda rate: sums[rate]) for arm, sums in means.items()}


def common_cells(rows: Sequence[dict] = ()) -> list[Cell]:
    """
    Stage `common`: arms at the learning rate that was chosen for two of them, of which the two need no runs.

    GRPO was added when the first seed of the stage `arms` had been seen, in which GRPO at the learning rate that one
    seed chose was much worse than on that seed; the others when all seeds had been.
    """
    return [
        Cell(*each, COMMON_RATE, seed)
        for each in COMMON
        if each[0] in ("grpo", "grpo_kl", "balance_group")
        for seed in SEEDS
    ]


STAGES = {"tune": tuning_cells, "arms": main_cells, "common": common_cells}

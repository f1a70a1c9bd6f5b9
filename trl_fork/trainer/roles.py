"""What trajectory balance reads of rollouts in which several roles write: turns of an episode, and KL coefficients."""

from functools import partial
from math import isfinite, isnan
from numbers import Real

from datasets import Dataset

from ..data.columns import ROLE_BETA, place


def rows_per_episode(rollout_func) -> int:
    """
    Rows of an episode: the attribute `rows_per_episode` of a rollout function, 1 where it has none.

    Row `i` of a process is turn `i % rows_per_episode` of its episode. The functions that a wrapper made by
    `functools.wraps`, or a partial, calls are asked as well, since it has no attributes of the other one's class.

    Raises:
        `ValueError`: for a value that is not a whole number of at least 1.
    """
    function = rollout_func
    while function is not None:
        rows = getattr(function, "rows_per_episode", None)
        if rows is not None:
            if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
                raise ValueError(
                    f"rollout_func.rows_per_episode must be a whole number of at least 1, got {rows!r}: it is the "
                    "number of adjacent rows that are the turns of one episode. Leave it out where each row is one."
                )
            return rows
        function = function.func if isinstance(function, partial) else getattr(function, "__wrapped__", None)
    return 1


def check_episodes(rows: int, args, *, evaluates: bool) -> None:
    """
    Refuse batches in which the turn of a row would not follow from its number.

    Args:
        rows (`int`): Rows of an episode.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        evaluates (`bool`): Whether there are data to evaluate on.

    Raises:
        `ValueError`: naming the setting, its value and the remedy.
    """
    sizes = {
        "num_generations": args.num_generations,
        "per_device_train_batch_size * steps_per_generation": (
            args.per_device_train_batch_size * args.steps_per_generation
        ),
    }
    if evaluates:
        sizes |= {
            "num_generations_eval": args.num_generations_eval or args.num_generations,
            "per_device_eval_batch_size": args.per_device_eval_batch_size,
        }
    for name, size in sizes.items():
        if size % rows:
            raise ValueError(
                f"{name}={size} must be a multiple of {rows}, the rows of an episode (rows_per_episode of "
                "rollout_func): the estimate of log Z is over rows of the same turn. Set a multiple."
            )


def role_beta_of(example: dict, args, where: str) -> float:
    """
    KL coefficient of the role that wrote a completion: `role_beta` of its example, or `beta`.

    Args:
        example (`dict`): Row of a data set, with what a rollout function has added to it.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        where (`str`): The row's place, for the error.

    Raises:
        `ValueError`: for a value that is not a positive number, and for one other than `beta` beside estimates that
            were made for `beta`.
    """
    value = example.get(ROLE_BETA)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of an array
        value = value.item()
    if value is None or (isinstance(value, float) and isnan(value)):
        return float(args.beta)
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value) or value <= 0:
        raise ValueError(
            f"{where}: {ROLE_BETA} is {value!r}, and has to be a positive number, the KL coefficient of the role that "
            f"wrote the row. None stands for beta, {args.beta}."
        )
    if args.partition == "offline" and value != args.beta:
        raise ValueError(
            f"{where}: {ROLE_BETA} is {value!r} and beta {args.beta}, for which the column 'log_partition' was made. "
            f"Set partition='group', or leave {ROLE_BETA} out."
        )
    return float(value)


def refuse_role_betas(examples: list[dict], where: str) -> None:
    """
    Refuse KL coefficients of roles in a batch of the policy gradient, which does not read them.

    Raises:
        `ValueError`: naming the row and the remedy.
    """
    for row, example in enumerate(examples):
        value = example.get(ROLE_BETA)
        if value is not None and value == value:  # NaN stands for none
            raise ValueError(
                f"{where}, row {row} of the batch: {ROLE_BETA}={value!r} has no effect with "
                "objective='policy_gradient', whose KL coefficient is beta for all rows. Leave it out, or set "
                "objective='trajectory_balance'."
            )


def check_role_column(name: str, dataset, args) -> None:
    """[`role_beta_of`] each row of a data set that has such a column, before a model is loaded."""
    # A transform may make another column of it.
    if isinstance(dataset, Dataset) and ROLE_BETA in dataset.column_names and dataset.format["type"] != "custom":
        for number, row in enumerate(dataset.select_columns([ROLE_BETA])):
            role_beta_of(row, args, f"{name}: {place(ROLE_BETA, number)}")

"""KL coefficients of roles: a column that a rollout function adds to its rows, for trajectory balance."""

from math import isfinite, isnan
from numbers import Real

from datasets import Dataset

from ..data.columns import ROLE_BETA, place


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

"""The column `log_partition` of the data, estimates of `log Z` that were made before training."""

from math import isfinite
from numbers import Real

from datasets import Dataset, IterableDataset

from ..data.columns import place


PARTITION_COLUMN = "log_partition"
_REMEDY = f"`trl-fork partition` writes the column {PARTITION_COLUMN!r}; or set partition='group'"


def log_partition_of(example: dict, where: str) -> float:
    """
    The estimate of an example.

    Args:
        example (`dict`): Row of a data set.
        where (`str`): Its place, for the error.

    Raises:
        `ValueError`: if there is none, or it is not a finite number.
    """
    if PARTITION_COLUMN not in example:
        raise ValueError(f"{where}: partition='offline' needs a column {PARTITION_COLUMN!r}. {_REMEDY}.")
    value = example[PARTITION_COLUMN]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of a data set in another format
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        raise ValueError(
            f"{where}: {PARTITION_COLUMN} is {value!r}, and has to be a finite number, log Z in nats. {_REMEDY}."
        )
    return float(value)


def check_partition_column(name: str, dataset, remove_unused_columns: bool) -> None:
    """
    Check that every row of a data set has an estimate. Of a stream only the columns are looked at, if known.

    Args:
        name (`str`): The data set's name in errors.
        dataset: The data set.
        remove_unused_columns (`bool`): The setting.

    Raises:
        `ValueError`: naming the data set, the row and the remedy.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)) or dataset.column_names is None:
        return
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":  # a transform may make any column
        return
    if PARTITION_COLUMN not in dataset.column_names:
        log_partition_of({}, f"{name} (columns {dataset.column_names})")
    if remove_unused_columns:
        raise ValueError(
            f"remove_unused_columns is set, and would take {PARTITION_COLUMN!r} out of {name}, which "
            "partition='offline' needs. Set remove_unused_columns to false."
        )
    if isinstance(dataset, Dataset):
        for number, row in enumerate(dataset.select_columns([PARTITION_COLUMN])):
            log_partition_of(row, f"{name}: {place(PARTITION_COLUMN, number)}")

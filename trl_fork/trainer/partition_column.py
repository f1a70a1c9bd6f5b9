"""The column `log_partition` of the data, estimates of `log Z` that were made before training."""

from math import isclose, isfinite
from numbers import Real

from datasets import Dataset, IterableDataset

from ..data.columns import LOG_PARTITION, LOG_PARTITION_SETTINGS, PARTITION_SETTINGS, place


_LARGEST = 1e15  # the square of a residual of 1e20 is infinite in float32, and a batch adds squares up
_REMEDY = f"`trl-fork partition` writes the column {LOG_PARTITION!r}; or set partition='group'"


def log_partition_of(example: dict, where: str) -> float:
    """
    The estimate of an example.

    Args:
        example (`dict`): Row of a data set.
        where (`str`): Its place, for the error.

    Raises:
        `ValueError`: if there is none, or it is not a number whose square is finite.
    """
    if LOG_PARTITION not in example:
        raise ValueError(f"{where}: partition='offline' needs a column {LOG_PARTITION!r}. {_REMEDY}.")
    value = example[LOG_PARTITION]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of a data set in another format
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value) or abs(float(value)) > _LARGEST:
        raise ValueError(
            f"{where}: {LOG_PARTITION} is {value!r}, and has to be a finite number, log Z in nats, of at most "
            f"{_LARGEST:g} in size. {_REMEDY}."
        )
    return float(value)


def check_partition_settings(settings: dict | None, args, where: str) -> None:
    """
    Refuse estimates that were made for other settings than those of the run.

    Args:
        settings (`dict`, *optional*): What `trl-fork partition` has written; `None` for estimates of another origin.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        where (`str`): The row's place, for the error.

    Raises:
        `ValueError`: naming the setting and both of its values.
    """
    for name in PARTITION_SETTINGS:
        then = settings.get(name) if isinstance(settings, dict) else None
        now = getattr(args, name)
        if then is not None and not isclose(then, now, rel_tol=1e-6):
            raise ValueError(
                f"{where}: {LOG_PARTITION} was estimated for {name}={then}, and {name} is {now}. Set {name}={then}, "
                f"or run `trl-fork partition` again for {name}={now}."
            )


def check_partition_column(name: str, dataset, args) -> None:
    """
    Check that every row of a data set has an estimate, and for these settings. Of a stream only the columns are looked
    at, if known.

    Args:
        name (`str`): The data set's name in errors.
        dataset: The data set.
        args ([`ForkingGRPOConfig`]): Configuration of the run.

    Raises:
        `ValueError`: naming the data set, the row and the remedy.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)) or dataset.column_names is None:
        return
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":  # a transform may make any column
        return
    if LOG_PARTITION not in dataset.column_names:
        log_partition_of({}, f"{name} (columns {dataset.column_names})")
    if args.remove_unused_columns:
        raise ValueError(
            f"remove_unused_columns is set, and would take {LOG_PARTITION!r} out of {name}, which "
            "partition='offline' needs. Set remove_unused_columns to false."
        )
    if isinstance(dataset, Dataset):
        known = [column for column in (LOG_PARTITION, LOG_PARTITION_SETTINGS) if column in dataset.column_names]
        for number, row in enumerate(dataset.select_columns(known)):
            where = f"{name}: {place(LOG_PARTITION, number)}"
            log_partition_of(row, where)
            check_partition_settings(row.get(LOG_PARTITION_SETTINGS), args, where)

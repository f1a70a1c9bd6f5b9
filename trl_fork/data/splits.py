"""Splits of data sets: files, the Hub, and the paper's by short name."""

from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from datasets import load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from .._logging import logger
from .exact_numbers import load_exact
from .math_datasets import BENCHMARKS, TRAINING_SETS, MathDataset, find_dataset


class NoDataError(ValueError):
    """A data set that is not there or cannot be read. The option that names it is the caller's: [`naming`]."""


@contextmanager
def naming(option: str):
    """Put the name of an option before a [`NoDataError`]."""
    try:
        yield
    except NoDataError as error:
        raise ValueError(f"{option}: {error}") from error


_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_split(
    name: str, split: str, config: str | None = None, streaming: bool = False, data_files: str | None = None
):
    """
    Load one split of a data set: from the Hub, a folder of `save_to_disk`, or a JSON, JSONL, Parquet or CSV file.

    Args:
        name (`str`): Hub name or local path. A file is the whole data set, and `split` is ignored.
        split (`str`): Name of the split.
        config (`str`, *optional*): Configuration of a Hub data set.
        streaming (`bool`, *optional*, defaults to `False`): Whether to stream it.
        data_files (`str`, *optional*): The only file of a Hub data set to load, as its split.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`].

    Integers that a column of numbers would round, such as those beyond 64 bits, are texts in the columns of a JSON,
    JSONL or CSV file.

    Raises:
        `NoDataError`: if the data set is none of these.
        `ValueError`: if it does not have the split (naming those it has).
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in _FILE_BUILDERS:
            raise NoDataError(f"The data set {name!r} cannot be read: files must be one of {sorted(_FILE_BUILDERS)}.")
        if not path.stat().st_size:
            raise NoDataError(f"The data set {name!r} is an empty file.")
        exact = load_exact(path)
        if exact is not None:
            return exact.to_iterable_dataset() if streaming else exact
        try:
            return load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=streaming)
        except DatasetGenerationError as error:
            raise NoDataError(
                f"The data set {name!r} cannot be read as {path.suffix[1:]}: {error.__cause__ or error}."
            ) from error
    if path.suffix in _FILE_BUILDERS:
        raise NoDataError(f"The data set {name!r} is not there: there is no such file (looked from {Path.cwd()}).")
    if (path / "state.json").is_file():
        return load_from_disk(name)
    if (path / "dataset_dict.json").is_file():
        data = load_from_disk(name)
    else:
        files = {split: data_files} if data_files else None
        near = get_close_matches(name, [*TRAINING_SETS, *BENCHMARKS], 1)
        meant = f" Did you mean {near[0]!r}?" if near and "/" not in name else ""
        if meant:  # the Hub's client tries for half a minute
            logger.warning(f"{name!r} is no short name of a data set. The Hub is asked for it.{meant}")
        try:
            data = load_dataset(name, config, data_files=files, streaming=streaming)
        except (ConnectionError, DatasetNotFoundError) as error:
            raise NoDataError(
                f"The data set {name!r} is not there: there is no such file or folder (looked from {Path.cwd()}), and "
                f"it cannot be loaded from the Hub: {error}.{meant}"
            ) from error
    if split not in data:
        raise ValueError(
            f"The data set {name!r} has no split {split!r}; it has {sorted(data)}. Set dataset_train_split, or "
            "dataset_test_split for an evaluation, to one of these."
        )
    return data[split]


def load_entry(entry: MathDataset | None, name: str, split: str, config: str | None, streaming: bool = False):
    if entry is None:
        return load_split(name, split, config, streaming)
    if entry.data_files and split != entry.split:  # the file would be loaded under any name
        raise ValueError(f"The data set {name!r} has no split {split!r}; it has {[entry.split]}.")
    return load_split(entry.hub_id, split, config or entry.config, streaming, entry.data_files)


def source_of(name: str, split: str, config: str | None = None, *, benchmark: bool = False) -> tuple[str | None, ...]:
    """
    Source of the rows of a data set: two names with one source are the same rows.

    Args:
        name (`str`): Name, as [`~data.load_training_set`] or, with `benchmark`, [`~data.load_benchmark`] takes it.
        split (`str`): Name of the split. It does not matter for a file or a folder with a single data set.
        config (`str`, *optional*): Configuration of a Hub data set.
        benchmark (`bool`, *optional*, defaults to `False`): Whether a short name is that of a benchmark.
    """
    path = Path(name)
    if path.is_file() or (path / "state.json").is_file():
        return (str(path.resolve()),)
    if (path / split / "state.json").is_file():
        return (str((path / split).resolve()),)
    if path.exists():
        return (str(path.resolve()), config, split)
    entry = find_dataset(BENCHMARKS if benchmark else TRAINING_SETS, name, config)
    if entry is None:
        return (name, config, split)
    return (entry.hub_id, config or entry.config, entry.split if benchmark else split)

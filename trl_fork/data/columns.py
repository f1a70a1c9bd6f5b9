"""Columns of a data set: finding them by their usual names, and reading them with errors that name the place."""

from typing import Any

from datasets import IterableDatasetDict

from .prompt_formats import is_conversation


# In order of preference. `answer` comes before `solution`: where a data set has both, `solution` is a worked text and
# `answer` its last line.
PROMPT_COLUMNS = ("prompt", "question", "problem")
SOLUTION_COLUMNS = ("ground_truth", "reward_model.ground_truth", "final_answer", "answer", "solution")

# Of a prompt, for `partition="offline"`: an estimate of log Z in nats, and the settings of the training that it is
# for, with their names.
LOG_PARTITION, LOG_PARTITION_SETTINGS = "log_partition", "log_partition_settings"
PARTITION_SETTINGS = ("beta", "length_normalized", "temperature", "max_completion_length")

# Of a completion, for `objective="trajectory_balance"`: the KL coefficient of the role that wrote it; `beta` where it
# is not set.
ROLE_BETA = "role_beta"

# What the trainer itself passes to a reward function (`GRPOTrainer._calculate_rewards`).
REWARD_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# Beside `prompt`, columns by any of which TRL decides whether a row is a conversation (`trl.is_conversational`).
_DECIDING_COLUMNS = ("completion", "messages", "chosen", "rejected")


def column_names(dataset) -> list[str]:
    """
    Names of the columns; for a stream without column names, those of its first row.

    Raises:
        `ValueError`: for several splits, or no columns at all.
    """
    if isinstance(dataset, (dict, IterableDatasetDict)):
        raise ValueError(f"Expected one split, got the splits {sorted(dataset)}: pick one of them.")
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns:
        raise ValueError("The data set has no rows and no columns.")
    return columns


def find_column(argument: str, given: str | None, candidates: tuple[str, ...], columns: list[str]) -> str | None:
    """
    Find a column; `None` if there is none. A dot separates the parts of a nested name.

    Exact names come first, then those that differ in upper and lower case only.

    Args:
        argument (`str`): Option by which a user chooses the column.
        given (`str`, *optional*): Its value.
        candidates (`tuple[str]`): Names to look for if it is not set.
        columns (`list[str]`): Columns of the data set.

    Raises:
        `ValueError`: if several columns differ from the name in upper and lower case only.
    """
    # Only the first part can be looked up without reading rows; a wrong second part fails on the first row.
    parts = [name.partition(".") for name in ((given,) if given else candidates)]
    for root, dot, rest in parts:
        if root in columns:
            return root + dot + rest
    for root, dot, rest in parts:
        found = [column for column in columns if column.lower() == root.lower()]
        if len(found) > 1:
            raise ValueError(f"{argument}: the data set has the columns {found}. Set {argument} to one of these.")
        if found:
            return found[0] + dot + rest
    return None


def pick_column(argument: str, given: str | None, candidates: tuple[str, ...], columns: list[str]) -> str:
    """[`find_column`], with a `ValueError` that names the existing columns if none is found."""
    column = find_column(argument, given, candidates, columns)
    if column is None:
        wanted = f"no column {given!r}" if given else f"none of the columns {list(candidates)}"
        raise ValueError(f"{argument}: the data set has {wanted}; it has {columns}. Set {argument} to one of these.")
    return column


def get_value(row: dict, column: str, number: int | None = None) -> Any:
    """
    The value of a column, nested or not; `None` if a nested column is missing as a whole.

    Raises:
        `ValueError`: if there is no such value within a nested column, naming the row if its number is known.
    """
    value: Any = row
    for part in column.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            there = f"; it has {list(value)}" if isinstance(value, dict) else f", but {value!r}"
            raise ValueError(f"{place(column, number)}: there is no {part!r}{there}.")
        value = value[part]
    return value


def place(column: str, number: int | None = None) -> str:
    """Place of a value, as the beginning of an error."""
    return f"column {column!r}" if number is None else f"row {number}, column {column!r}"


def misleading_columns(row: dict, prompt) -> list[str]:
    """Columns of a row for which TRL may take a prompt that is a text for a conversation, or the other way round."""
    return [
        name for name in _DECIDING_COLUMNS if name in row and is_conversation(row[name]) != is_conversation(prompt)
    ]

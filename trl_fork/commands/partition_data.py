"""The data of `trl-fork partition`: training data, with estimates, and the command that trains on it."""

import argparse
import hashlib
import json
import shlex
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from .._files import replacing
from ..data.columns import (
    LOG_PARTITION,
    LOG_PARTITION_SETTINGS,
    SOLUTION_COLUMNS,
    column_names,
    get_value,
    pick_column,
)
from ..data.math_datasets import PAPER_PROMPT
from ..data.prompt_and_solution import final_answer
from ..data.prompt_file import encode_prompt
from ..data.splits import naming
from ..data.training_sets import load_training_set
from ..evaluation.metrics import Problem
from ..rewards.grading import GradingPool
from ..trainer.checks import check_tokenizer
from .program import program
from .sampling import report_unread_arguments, rows_with_solution


COLUMNS = (
    *(LOG_PARTITION, LOG_PARTITION_SETTINGS, "pass_rate", "effective_sample_size"),
    *("log_partition_standard_error", "log_partition_estimate"),
)


@dataclass(frozen=True)
class PartitionData:
    """
    Training data, and its different problems.

    Args:
        rows (`list[dict]`): Rows as `trl-fork train` takes them, without those whose solution cannot be graded.
        problems (`list[Problem]`): Different pairs of prompt and solution, in their order.
        places (`list[int]`): The problem of each row.
        options (`dict[str, str]`): Options of `trl-fork train` with which it makes the same prompts of the rows.
    """

    rows: list[dict]
    problems: list[Problem]
    places: list[int]
    options: dict[str, str]


def load_partition_data(options: argparse.Namespace, tokenizer, pool: GradingPool) -> PartitionData:
    """
    Load what `trl-fork train` would load with the same options.

    Raises:
        `ValueError`: as the training does, and for data without a row that can be graded or written.
    """
    with naming("--dataset"):
        data = load_training_set(
            options.dataset,
            options.dataset_train_split,
            config=options.dataset_config,
            deduplicate=options.deduplicate,
            prompt_column=options.prompt_column,
            solution_column=options.solution_column,
            instruction=options.instruction,
            prompt_template=options.prompt_template,
        )
    data = data.select(range(min(options.limit or len(data), len(data))))
    data = data.remove_columns([name for name in COLUMNS if name in data.column_names])
    check_tokenizer(
        tokenizer,
        data.select(range(min(1, len(data)))),
        plain_prompts='set prompt_template, a plain text (--prompt_template "Question: {question} Answer:", or paper)',
    )
    readable = rows_with_solution(options.dataset, data["solution"], pool)
    if not readable:
        raise ValueError(
            f"--dataset {options.dataset!r}: of {len(data)} rows, none has a solution that math-verify can read, and "
            "samples are graded by it. Name the column of the answers in --solution_column."
        )
    rows: list[dict] = []
    places: list[int] = []
    problems: dict[str, Problem] = {}
    numbers: dict[str, int] = {}
    for number in readable:
        row = data[number]
        text, ids = encode_prompt(tokenizer, row["prompt"], options.chat_template_kwargs)
        name = hashlib.sha256(f"{text}\0{row['solution']}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        problems.setdefault(name, Problem(options.dataset, name, text, ids, row["solution"]))
        places.append(numbers.setdefault(name, len(numbers)))
        rows.append(_as_json(_with_question(row, options.prompt_template), number))
    conversations = any(not isinstance(row["prompt"], str) for row in data.select(range(1)))
    report_unread_arguments(options, tokenizer.get_chat_template() if conversations else "")
    return PartitionData(rows, list(problems.values()), places, _options_of(options, data))


def write_data(path: Path, data: PartitionData, columns: dict[str, list[float | None]], settings: dict) -> None:
    """
    Write the rows with further columns, one JSON object a line.

    Args:
        path (`Path`): The file.
        data ([`PartitionData`]): The data.
        columns (`dict`): Values of each problem by the name of their column.
        settings (`dict`): Those of the training that the estimates are for, which every row says.
    """
    with replacing(path) as unfinished, open(unfinished, "w") as file:
        for row, place in zip(data.rows, data.places, strict=True):
            values = {name: column[place] for name, column in columns.items()}
            file.write(json.dumps({**row, **values, LOG_PARTITION_SETTINGS: settings}) + "\n")


def next_command(options: argparse.Namespace, data: PartitionData) -> str:
    """The command that trains on the file with the settings that its column is right for."""
    output = Path(options.output)
    words = {
        "model_name_or_path": options.model,
        "dataset_name": output / "data.jsonl",
        **data.options,
        "objective": "trajectory_balance",
        "partition": "offline",
        "balance_reward": "reward",
        "beta": options.beta,
        "length_normalized": str(options.length_normalized).lower(),
        "loss_denominator": "all",
        "temperature": options.temperature,
        "max_completion_length": options.max_new_tokens,
    }
    if options.chat_template_kwargs:
        words["chat_template_kwargs"] = json.dumps(options.chat_template_kwargs)
    if options.stop:
        words["generation_kwargs"] = json.dumps({"stop_strings": options.stop})
    words["output_dir"] = output / "model"
    return shlex.join([*program(), "train", *(str(word) for name in words for word in (f"--{name}", words[name]))])


def _with_question(row: dict, template: str | None) -> dict:
    """A row whose prompt is what the training puts into a template: from a plain text it would make a message."""
    if template is None:
        return row
    parts = (PAPER_PROMPT if template == "paper" else template).split("{question}")
    length = (len(row["prompt"]) - sum(map(len, parts))) // (len(parts) - 1)
    return {**row, "prompt": row["prompt"][len(parts[0]) : len(parts[0]) + length]}


def _options_of(options: argparse.Namespace, data) -> dict[str, str]:
    needed = {"prompt_template": options.prompt_template} if options.prompt_template else {}
    # An explicit column, or that of a known data set, need not be the first that the training would look for.
    found = pick_column("solution_column", None, SOLUTION_COLUMNS, column_names(data))
    is_same = found == "solution" or all(final_answer(get_value(row, found)) == row["solution"] for row in data)
    return needed if is_same else {**needed, "solution_column": "solution"}


def _as_json(row: dict, number: int) -> dict:
    """A row as it can be written: a value that is no number, as pandas writes for a missing one, is null."""
    row = {name: None if isinstance(value, float) and isnan(value) else value for name, value in row.items()}
    for name, value in row.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(
                f"--dataset: row {number}, column {name!r}: a value of type {type(value).__name__} cannot be written "
                f"to data.jsonl ({error}). Leave that column out of the data."
            ) from error
    return row

"""Problems to train on, with TRL's columns `prompt` and `solution`."""

import os

from datasets import Dataset

from .columns import PROMPT_COLUMNS, column_names, get_value, pick_column, place
from .math_datasets import BOXED_INSTRUCTION, PAPER_PROMPT, TRAINING_SETS, find_dataset
from .prompt_and_solution import to_prompt_and_solution
from .prompt_formats import is_chat_formatted, is_conversation
from .prompt_writer import question_of
from .splits import load_entry


def load_training_set(
    name: str,
    split: str = "train",
    *,
    config: str | None = None,
    streaming: bool = False,
    deduplicate: bool | None = None,
    prompt_column: str | None = None,
    solution_column: str | None = None,
    solution_required: bool = True,
    instruction: str | None = None,
    prompt_template: str | None = None,
    contrast: bool = False,
    contrast_instruction: str | None = None,
):
    """
    Load problems to train on, with the columns `prompt` and `solution` beside their own.

    Args:
        name (`str`):
            Short name of one of [`~data.math_datasets.TRAINING_SETS`], or anything [`~data.splits.load_split`] takes.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        config (`str`, *optional*):
            Configuration of a Hub data set; by default the one of the table.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream it.
        deduplicate (`bool`, *optional*):
            Whether to keep each problem once, and print how many there are. By default for the sets of the table that
            repeat problems: DAPO-Math-17k has each of its problems about a hundred times.
        prompt_column, solution_column, solution_required, instruction, prompt_template (*optional*):
            Arguments of [`~data.to_prompt_and_solution`]. Sets of the table have known columns, and by default ask
            for `\\boxed{}`.
        contrast, contrast_instruction (*optional*):
            Arguments of [`~data.to_prompt_and_solution`].

    Returns:
        [`~datasets.Dataset`], or [`~datasets.IterableDataset`] when streaming.

    Raises:
        `ValueError`: for `deduplicate` with `streaming`, and as [`~data.splits.load_split`] and
            [`~data.to_prompt_and_solution`] do.
    """
    entry = find_dataset(TRAINING_SETS, name, config)
    if deduplicate is None:
        deduplicate = entry is not None and entry.repeats
    if deduplicate and streaming:
        raise ValueError(
            f"dataset_streaming: {name!r} repeats its problems, and a stream cannot drop the repetitions. Set "
            "dataset_streaming to false, or deduplicate to false to train on them as they are."
        )
    dataset = load_entry(entry, name, split, config, streaming)
    if entry is not None:
        prompt_column = prompt_column or entry.prompt_column
        solution_column = solution_column or entry.solution_column
        instruction = instruction or (None if prompt_template else BOXED_INSTRUCTION)
    if deduplicate:
        rows = len(dataset)
        dataset = drop_repeated_problems(dataset, prompt_column)
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: {len(dataset):,} different problems in {rows:,} rows; each is kept once.")
    return to_prompt_and_solution(
        dataset,
        prompt_column=prompt_column,
        solution_column=solution_column,
        solution_required=solution_required,
        instruction=instruction,
        prompt_template=prompt_template,
        contrast=contrast,
        contrast_instruction=contrast_instruction,
    )


def training_prompt(
    name: str,
    split: str = "train",
    *,
    config: str | None = None,
    streaming: bool = False,
    prompt_column: str | None = None,
    instruction: str | None = None,
    prompt_template: str | None = None,
) -> dict[str, str] | None:
    """
    The prompt that [`load_training_set`] makes of a question, given the same arguments.

    Returns:
        `dict`: `{"instruction": ...}` or `{"prompt_template": ...}`, with `{question}` in it; or `None` if prompts
        are in chat format already, which stay as they are; or `{"system_prompt": ...}` if these are conversations and
        the first thousand all begin with one system prompt.
    """
    if prompt_template is not None:
        return {"prompt_template": PAPER_PROMPT if prompt_template == "paper" else prompt_template}
    entry = find_dataset(TRAINING_SETS, name, config)
    if instruction is None and entry is None:
        dataset = load_entry(entry, name, split, config, streaming)
        column = pick_column("prompt_column", prompt_column, PROMPT_COLUMNS, column_names(dataset))
        prompt = get_value(next(iter(dataset)), column, 0)
        if is_chat_formatted(prompt):
            return None
        if is_conversation(prompt):
            system_prompts = {_system_prompt(get_value(row, column)) for row in dataset.take(1000)}
            system_prompt = system_prompts.pop() if len(system_prompts) == 1 else None
            return {"system_prompt": system_prompt} if system_prompt else None
    return {"instruction": instruction or ("{question}" if entry is None else BOXED_INSTRUCTION)}


def drop_repeated_problems(dataset: Dataset, prompt_column: str | None = None) -> Dataset:
    """
    Keep the first row of each problem, by the text of the question.

    Args:
        dataset ([`~datasets.Dataset`]):
            The data set. Rows are read from disk in pieces; only the texts that differ are held in memory.
        prompt_column (`str`, *optional*):
            Column of the question, found by its usual names if not given.
    """
    prompt_column = pick_column("prompt_column", prompt_column, PROMPT_COLUMNS, column_names(dataset))
    column = prompt_column.split(".")[0]
    first: dict[str, int] = {}
    seen: set[str] = set()
    position = 0
    # Arrow tables are ten times as fast as rows, and only new values are parsed: 1.8 million rows are read here.
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        for value in table[column].to_pylist():
            raw = str(value)
            if raw not in seen:
                seen.add(raw)
                first.setdefault(question_of({column: value}, prompt_column, place(column, position)), position)
            position += 1
    return dataset.select(first.values())


def _system_prompt(prompt: list[dict]) -> str | None:
    first = prompt[0] if prompt else {}
    return first["content"] if first.get("role") == "system" and isinstance(first.get("content"), str) else None

"""Datasets to TRL's `prompt` and `solution` columns, and the checks that fail before hours are spent."""

import inspect
from functools import wraps
from pathlib import Path

from datasets import Dataset, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from transformers import ProcessorMixin
from trl import is_conversational


# In order of preference. `answer` comes before `solution`: where a data set has both, `solution` is a worked text and
# `answer` its last line.
PROMPT_COLUMNS = ("prompt", "question", "problem")
SOLUTION_COLUMNS = ("ground_truth", "reward_model.ground_truth", "answer", "solution")

# What the trainer itself passes to a reward function (`GRPOTrainer._calculate_rewards`).
_TRAINER_ARGUMENTS = {
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
}
_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_split(name: str, split: str, config: str | None = None, streaming: bool = False):
    """
    Load one split of a data set: from the Hub, a folder of `save_to_disk`, or a JSON, JSONL, Parquet or CSV file.

    Args:
        name (`str`): Hub name or local path. A file is the data set, whatever `split` says.
        split (`str`): Name of the split.
        config (`str`, *optional*): Configuration of a Hub data set.
        streaming (`bool`, *optional*, defaults to `False`): Whether to stream it.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`].

    Raises:
        `ValueError`: if a local path looks like none of these, or does not have the split (naming those it has).
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in _FILE_BUILDERS:
            raise ValueError(f"dataset_name: cannot read {name!r}; files must be one of {sorted(_FILE_BUILDERS)}.")
        return load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=streaming)
    if path.suffix in _FILE_BUILDERS:
        raise ValueError(f"dataset_name: there is no file {name!r} (looked from {Path.cwd()}).")
    if (path / "state.json").is_file():
        return load_from_disk(name)
    if (path / "dataset_dict.json").is_file():
        data = load_from_disk(name)
    else:
        data = load_dataset(name, config, streaming=streaming)
    if split not in data:
        raise ValueError(f"The data set {name!r} has no split {split!r}; it has {sorted(data)}.")
    return data[split]


def to_prompt_and_solution(
    dataset: Dataset | IterableDataset,
    *,
    prompt_column: str | None = None,
    solution_column: str | None = None,
    instruction: str = "{question}",
):
    """
    Map a data set to the columns TRL's trainers and rewards read.

    `prompt` becomes a conversation of one user message, unless it is a conversation already. `solution` becomes the
    text of the final answer: what follows the last `####` of a GSM8K answer, anything else as it is. Other columns
    stay.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The data set.
        prompt_column (`str`, *optional*):
            Column of the question. By default the first there is of `prompt`, `question`, `problem`.
        solution_column (`str`, *optional*):
            Column of the answer, with a dot for a nested one. By default the first there is of `ground_truth`,
            `reward_model.ground_truth`, `answer`, `solution`.
        instruction (`str`, *optional*, defaults to `"{question}"`):
            Text of the user message; `{question}` stands for the question.

    Returns:
        The mapped data set.

    Raises:
        `ValueError`: if a column is missing, naming those there are and those wanted; or if `instruction` leaves the
            question out.
    """
    if "{question}" not in instruction:
        raise ValueError(f"instruction must contain '{{question}}', got {instruction!r}: the model would not see it.")
    columns = _columns(dataset)
    prompt_column = _pick("prompt_column", prompt_column, PROMPT_COLUMNS, columns)
    solution_column = _pick("solution_column", solution_column, SOLUTION_COLUMNS, columns)

    # Renamed first: `map` keeps the type of a column that keeps its name, and an integer `solution` would stay one.
    sources = {prompt_column.split(".")[0], solution_column.split(".")[0]}
    for name in sources:
        dataset = dataset.rename_column(name, f"_{name}")

    def convert(row):
        prompt, solution = _get(row, f"_{prompt_column}"), _get(row, f"_{solution_column}")
        if not is_conversational({"prompt": prompt}):
            prompt = [{"role": "user", "content": instruction.replace("{question}", prompt)}]
        return {"prompt": prompt, "solution": final_answer(solution)}

    return dataset.map(convert, remove_columns=[f"_{name}" for name in sources])


def load_benchmark(name: str, *, prompt_template: str | None = None) -> Dataset:
    """
    Load the problems of a benchmark.

    Args:
        name (`str`): Local file or folder, or name on the Hub.
        prompt_template (`str`, *optional*): Text of the prompt; `{question}` stands for the question.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt`, `solution` and `id`.
    """
    data = to_prompt_and_solution(load_split(name, "test"), instruction=prompt_template or "{question}")
    ids = [str(i) for i in (data["id"] if "id" in data.column_names else range(len(data)))]
    data = data.select_columns(["prompt", "solution"])
    return data.add_column("id", ids)


def final_answer(solution) -> str:
    """The answer that a reward compares with: `"... #### 1,018"` is `"1018"`; any other text is itself."""
    text = str(solution)
    if "####" not in text:
        return text
    return text.rsplit("####", 1)[1].strip().replace(",", "")


def check_training_data(dataset, reward_funcs, args, *, prompt_is_optional: bool, extra_fields: bool) -> None:
    """
    Check that a map-style data set can be trained on. Streams are not looked at: reading one may cost.

    Args:
        dataset: What was passed as `train_dataset`.
        reward_funcs: What was passed as `reward_funcs`.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        prompt_is_optional (`bool`): Whether an environment supplies the prompts.
        extra_fields (`bool`): Whether a rollout function may supply what rewards need beside the columns.

    Raises:
        `ValueError`: if the data set is empty, smaller than one generation batch, or lacks a column that a reward
            function needs.
    """
    if not isinstance(dataset, Dataset):
        return
    columns = dataset.column_names
    if len(dataset) == 0:
        raise ValueError(f"train_dataset is empty (columns: {columns}). Check the split, and any filter on it.")
    if "prompt" not in columns and not prompt_is_optional:
        raise ValueError(
            f"train_dataset needs a column 'prompt'; it has {columns}. Rename one, or use "
            "trl_fork.data.to_prompt_and_solution."
        )
    prompts = args.generation_batch_size // args.num_generations
    if len(dataset) < prompts:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, but one generation batch takes {prompts} prompts "
            f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}), and "
            "incomplete batches are dropped: there would be no step at all. Lower per_device_train_batch_size, "
            "gradient_accumulation_steps or steps_per_generation, raise num_generations, or add data."
        )
    if extra_fields:
        return
    for function in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        needed = [name for name in _required_arguments(function) if name not in {*columns, *_TRAINER_ARGUMENTS}]
        if needed:
            raise ValueError(
                f"The reward function '{getattr(function, '__name__', function)}' needs the columns {needed} that "
                f"train_dataset lacks; it has {columns}. Rename or add them."
            )


def check_tokenizer(processing_class, dataset) -> None:
    """
    Check that prompts of `dataset` can be tokenized and padded.

    Raises:
        `ValueError`: for a tokenizer with neither a padding nor an end-of-sequence token, or without a chat template
            where the prompts are conversations.
    """
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            "The tokenizer has neither a pad_token nor an eos_token to pad with. Set one, for example "
            "tokenizer.pad_token = '<pad>', on a token of its vocabulary."
        )
    conversational = isinstance(dataset, Dataset) and is_conversational(dataset[0])
    if conversational and getattr(processing_class, "chat_template", None) is None:
        raise ValueError(
            "The prompts are conversations, but the tokenizer has no chat_template to turn them into text. Load the "
            "tokenizer of the instruction-tuned model, set tokenizer.chat_template, or give prompts as plain strings."
        )


def refuse_empty_completions(rollout_func):
    """Wrap a rollout function so that an empty completion, an `IndexError` deep inside TRL, names its row."""

    @wraps(rollout_func)
    def checked(prompts, trainer):
        output = rollout_func(prompts, trainer)
        for row, completion in enumerate(output.get("completion_ids", ())):
            if len(completion) == 0:
                raise ValueError(
                    f"rollout_func returned an empty completion in row {row} of {len(output['completion_ids'])} on "
                    f"process {trainer.accelerator.process_index}. Every completion needs at least one token: return "
                    "the end-of-sequence token where the model says nothing."
                )
        return output

    return checked


def _required_arguments(function) -> list[str]:
    if not callable(function) or not hasattr(function, "__name__"):  # a reward model, or its name
        return []
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]


def _columns(dataset) -> list[str]:
    if isinstance(dataset, (dict, IterableDatasetDict)):
        raise ValueError(f"Expected one split, got the splits {sorted(dataset)}: pick one of them.")
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns:
        raise ValueError("The data set has no rows and no columns.")
    return columns


def _pick(argument: str, given: str | None, candidates: tuple[str, ...], columns: list[str]) -> str:
    for name in (given,) if given else candidates:
        # Only the first part can be looked up without reading rows; a wrong second part fails on the first row.
        if name.split(".")[0] in columns:
            return name
    wanted = repr(given) if given else f"one of {list(candidates)}"
    raise ValueError(
        f"{argument}: the data set has no column {wanted}; it has {columns}. Set {argument} to one of these."
    )


def _get(row: dict, column: str):
    for part in column.split("."):
        row = row[part]
    return row

"""Data sets with TRL's `prompt` and `solution` columns: files, the Hub, and the paper's by short name."""

import hashlib
import json
import os
from difflib import get_close_matches
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from .._logging import logger
from ..rewards.golds import READING, as_gold
from .columns import (
    PROMPT_COLUMNS,
    REWARD_ARGUMENTS,
    SOLUTION_COLUMNS,
    column_names,
    find_column,
    get_value,
    misleading_columns,
    pick_column,
    place,
)
from .contrast import CONTRAST_COLUMN
from .exact_numbers import check_exact, load_exact
from .gold_checks import warn_of_unreadable_golds
from .math_datasets import (
    BENCHMARKS,
    BOXED_INSTRUCTION,
    PAPER_PROMPT,
    TRAINING_SETS,
    MathDataset,
    find_dataset,
    strip_instruction,
)
from .prompt_formats import check_question, is_chat_formatted, is_conversation, is_in_chat_format
from .prompt_writer import has_known_instruction, only_user_message, prompt_writer, question_of


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
        `ValueError`: if a local path is none of these, or does not have the split (naming those it has).
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in _FILE_BUILDERS:
            raise ValueError(f"dataset_name: cannot read {name!r}; files must be one of {sorted(_FILE_BUILDERS)}.")
        if not path.stat().st_size:
            raise ValueError(f"dataset_name: the file {name!r} is empty.")
        exact = load_exact(path)
        if exact is not None:
            return exact.to_iterable_dataset() if streaming else exact
        try:
            return load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=streaming)
        except DatasetGenerationError as error:
            raise ValueError(
                f"dataset_name: the file {name!r} cannot be read as {path.suffix[1:]}: {error.__cause__ or error}."
            ) from error
    if path.suffix in _FILE_BUILDERS:
        raise ValueError(f"dataset_name: there is no file {name!r} (looked from {Path.cwd()}).")
    if (path / "state.json").is_file():
        return load_from_disk(name)
    if (path / "dataset_dict.json").is_file():
        data = load_from_disk(name)
    else:
        files = {split: data_files} if data_files else None
        try:
            data = load_dataset(name, config, data_files=files, streaming=streaming)
        except (ConnectionError, DatasetNotFoundError) as error:
            near = get_close_matches(name, [*TRAINING_SETS, *BENCHMARKS], 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"dataset_name: there is no file or folder {name!r} (looked from {Path.cwd()}), and it cannot be "
                f"loaded from the Hub: {error}.{meant}"
            ) from error
    if split not in data:
        raise ValueError(
            f"The data set {name!r} has no split {split!r}; it has {sorted(data)}. Set dataset_train_split, or "
            "dataset_test_split for an evaluation, to one of these."
        )
    return data[split]


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
            Short name of one of [`~data.math_datasets.TRAINING_SETS`], or anything [`load_split`] takes.
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
            Arguments of [`to_prompt_and_solution`]. Sets of the table have known columns, and by default ask for
            `\\boxed{}`.
        contrast, contrast_instruction (*optional*):
            Arguments of [`to_prompt_and_solution`].

    Returns:
        [`~datasets.Dataset`], or [`~datasets.IterableDataset`] when streaming.

    Raises:
        `ValueError`: for `deduplicate` with `streaming`, and as [`load_split`] and [`to_prompt_and_solution`] do.
    """
    entry = find_dataset(TRAINING_SETS, name, config)
    if deduplicate is None:
        deduplicate = entry is not None and entry.repeats
    if deduplicate and streaming:
        raise ValueError(
            f"dataset_streaming: {name!r} repeats its problems, and a stream cannot drop the repetitions. Set "
            "dataset_streaming to false, or deduplicate to false to train on them as they are."
        )
    dataset = _load(entry, name, split, config, streaming)
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
        dataset = _load(entry, name, split, config, streaming)
        column = pick_column("prompt_column", prompt_column, PROMPT_COLUMNS, column_names(dataset))
        prompt = get_value(next(iter(dataset)), column, 0)
        if is_chat_formatted(prompt):
            return None
        if is_conversation(prompt):
            system_prompts = {_system_prompt(get_value(row, column)) for row in dataset.take(1000)}
            system_prompt = system_prompts.pop() if len(system_prompts) == 1 else None
            return {"system_prompt": system_prompt} if system_prompt else None
    return {"instruction": instruction or ("{question}" if entry is None else BOXED_INSTRUCTION)}


def load_benchmark(
    name: str,
    *,
    prompt_template: str | None = None,
    instruction: str | None = None,
    system_prompt: str | None = None,
    trained_prompt: dict[str, str] | None = None,
    split: str | None = None,
    config: str | None = None,
    prompt_column: str | None = None,
    solution_column: str | None = None,
    contrast_instruction: str | None = None,
) -> Dataset:
    """
    Load the problems of a benchmark, each once.

    Args:
        name (`str`):
            Short name of one of [`~data.math_datasets.BENCHMARKS`], or anything [`load_split`] takes.
        prompt_template (`str`, *optional*):
            Prompt as plain text, for base models; `{question}` stands for the problem. The paper's is
            [`~data.math_datasets.PAPER_PROMPT`].
        instruction (`str`, *optional*):
            Text of the user message, for models with a chat template; by default the problem and the request to
            answer within `\\boxed{}`. `"{question}"` is the problem as it stands, with the white space around it, as
            [`load_training_set`] takes it without an instruction; only DAPO-Math-17k's and guru's are left out.
        system_prompt (`str`, *optional*):
            Message of the system before that of the user.
        trained_prompt (`dict`, *optional*):
            Result of [`training_prompt`] for the model's training, in place of the default instruction.
        split (`str`, *optional*):
            Name of the split; by default the one of the table, or `"test"`.
        config (`str`, *optional*):
            Configuration of a Hub data set; by default the one of the table.
        prompt_column, solution_column (`str`, *optional*):
            Arguments of [`to_prompt_and_solution`]; by default those of the table.
        contrast_instruction (`str`, *optional*):
            Text after the question in a further column `contrast_prompt`, as in [`to_prompt_and_solution`].

    Returns:
        [`~datasets.Dataset`] with the columns `prompt` (a conversation, or a text with `prompt_template`), `solution`
        (text that math-verify reads as the answer) and `id` (`str`, different for every problem, and the same wherever
        it stands in the file). Prompts in chat format stay as they are, as in training, unless `prompt_template` or
        `instruction` is given, or the data set's own instruction asks for a format that no reward reads.

    Raises:
        `ValueError`: if two problems have one id, and as [`load_split`] and [`to_prompt_and_solution`] do.
    """
    entry = find_dataset(BENCHMARKS, name, config)
    dataset = _load(entry, name, split or (entry.split if entry else "test"), config)
    columns = column_names(dataset)
    prompt_column = prompt_column or (entry.prompt_column if entry else None)
    solution_column = solution_column or (entry.solution_column if entry else None)
    prompt_column = pick_column("prompt_column", prompt_column, PROMPT_COLUMNS, columns)
    solution_column = pick_column("solution_column", solution_column, SOLUTION_COLUMNS, columns)
    trained = trained_prompt or {}
    given = {"prompt_template": prompt_template, "instruction": instruction, "system_prompt": system_prompt}
    if prompt_template is instruction is None:
        prompt_template, instruction = trained.get("prompt_template"), trained.get("instruction")
    if system_prompt is None and prompt_template is None:
        system_prompt = trained.get("system_prompt")
    has_instruction = not (prompt_template is instruction is None)
    if not has_instruction:
        instruction = BOXED_INSTRUCTION
    ask = prompt_writer(prompt_template=prompt_template, instruction=instruction, system_prompt=system_prompt)
    # Only arguments of this call are put into prompts in chat format, or refused ...
    keep = prompt_writer(**given)
    # ... but a single message of the user is a question too.
    keep_message = prompt_writer(system_prompt=None if prompt_template else system_prompt)

    problems: dict[str, dict] = {}  # copies of a row, as in files for avg@k, are one problem
    for number, row in enumerate(dataset):
        asked, solution = get_value(row, prompt_column, number), get_value(row, solution_column, number)
        where = place(prompt_column, number)
        check_question(asked, where)
        check_exact(solution, solution_column, number)
        solution = final_answer(solution)
        if entry and entry.context_column and row.get(entry.context_column):
            asked = f"{row[entry.context_column]}\n{asked}"
        if not is_in_chat_format(asked):
            write, question = ask, strip_instruction(asked)
        elif (content := only_user_message(asked)) is not None:
            write = ask if has_instruction or has_known_instruction(content) else keep_message
            question = strip_instruction(content)
        else:
            write, question = keep, json.dumps(asked, ensure_ascii=False)
        made = {"prompt": write(asked, where)}
        if contrast_instruction is not None:
            made[CONTRAST_COLUMN] = write(asked, where, contrast_instruction)
        digest = hashlib.sha256(f"{question}\0{solution}".encode()).hexdigest()[:16]
        identity = str(row[entry.id_column]) if entry and entry.id_column else digest
        problems.setdefault(digest, {**made, "solution": solution, "id": identity})
    rows = list(problems.values())
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(
            f"{name!r} has different problems with one {entry and entry.id_column!r}: results could not be told apart."
        )
    if entry and config in (None, entry.config) and len(rows) != entry.num_problems:
        logger.warning(f"{name}: {len(rows)} problems where {entry.num_problems} are known; scores may not compare.")
    kinds = {isinstance(row["prompt"], str) for row in rows}
    if len(kinds) > 1:
        raise ValueError(
            f"{name!r}, column {prompt_column!r}: some prompts are in chat format, as text, and others plain "
            "questions. Split the file, or write all of them in one form."
        )
    dataset = Dataset.from_list(rows)
    warn_of_unreadable_golds(dataset, name)
    return dataset


def to_prompt_and_solution(
    dataset: Dataset | IterableDataset,
    *,
    prompt_column: str | None = None,
    solution_column: str | None = None,
    solution_required: bool = True,
    instruction: str | None = None,
    prompt_template: str | None = None,
    contrast: bool = False,
    contrast_instruction: str | None = None,
):
    """
    Add the columns that TRL's trainers and rewards read to a data set: `prompt` and `solution`.

    `prompt` becomes a conversation of one user message, or a plain text with `prompt_template`. A prompt that is a
    conversation already stays as it is, unless one of the two is given: then it must be one user message, and loses
    the instruction that DAPO-Math-17k or guru wrote into it. A text in chat format already (`<|im_start|>user ...`)
    stays as it is. `solution` becomes what [`final_answer`] makes of the answer; a structure, such as tests of a
    program, stays one.

    The data set's own columns stay, for rewards that take them, except those of names that the trainer needs itself:
    arguments that it passes to rewards (`completions`), and conversations beside a `prompt` that is a text or the
    other way round (`messages`), which TRL may take for the prompt's own format.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The data set.
        prompt_column (`str`, *optional*):
            Column of the question. By default the first there is of `prompt`, `question`, `problem`, in upper or lower
            case.
        solution_column (`str`, *optional*):
            Column of the answer, with a dot for a nested one. By default the first there is of `ground_truth`,
            `reward_model.ground_truth`, `final_answer`, `answer`, `solution`, in upper or lower case.
        solution_required (`bool`, *optional*, defaults to `True`):
            Whether every row needs an answer. If not, a data set without answers gets no `solution`.
        instruction (`str`, *optional*):
            Text of the user message; `{question}` stands for the question. By default the question alone.
        prompt_template (`str`, *optional*):
            Prompt as plain text, for base models; `{question}` stands for the question. `"paper"` is the paper's.
        contrast (`bool`, *optional*, defaults to `False`):
            Whether to make the negative prompts of the credit rules that need `contrast_log_probs`: a column
            `contrast_prompt` of questions becomes one of prompts, as the column of the question does.
        contrast_instruction (`str`, *optional*):
            With `contrast`, in data without that column: makes it, so that this text follows the question after a
            blank line, within `instruction` or `prompt_template`.

    Returns:
        The data set with these columns.

    Raises:
        `ValueError`: if a column is missing, naming those that exist and those wanted; if `instruction` or
            `prompt_template` leaves the question out, or both are given; for a question that is neither a text nor a
            conversation, or an answer that is missing or was rounded, naming row and column; if a conversation of
            several messages or a text in chat format is to be written anew; or for a `contrast_instruction` whose
            place in a prompt is not known.
    """
    write = prompt_writer(prompt_template=prompt_template, instruction=instruction)
    columns = column_names(dataset)
    prompt_column = pick_column("prompt_column", prompt_column, PROMPT_COLUMNS, columns)
    find_solution = pick_column if solution_required or solution_column else find_column
    solution_column = find_solution("solution_column", solution_column, SOLUTION_COLUMNS, columns)

    converted = ["prompt", *(["solution"] if solution_column else [])]
    if contrast and CONTRAST_COLUMN in columns:
        converted.append(CONTRAST_COLUMN)

    first = next(iter(dataset), None)
    formatted = first is not None and is_chat_formatted(get_value(first, prompt_column, 0))

    def make_prompt(value, number: int, column: str = prompt_column):
        where = place(column, number)
        check_question(value, where)
        if is_chat_formatted(value) != formatted:
            raise ValueError(f"{where}: of the prompts, some are in chat format and some are not: {value!r}.")
        return write(value, where)

    # `map` keeps the type of a column that keeps its name, and an integer `solution` would stay one.
    sources = {}
    for name in converted:
        if name in columns:
            sources[name] = next(free for n in range(len(columns) + 1) if (free := f"{name}_{n}") not in columns)
            dataset = dataset.rename_column(name, sources[name])
    unwanted = {*REWARD_ARGUMENTS} & {*columns}
    if first is not None:
        unwanted.update(misleading_columns(first, make_prompt(get_value(first, prompt_column, 0), 0)))

    def convert(row, number: int, reading=READING):  # the cache identifies the function by its defaults too
        row = {**row, **{name: row[source] for name, source in sources.items()}}
        made = {"prompt": make_prompt(get_value(row, prompt_column, number), number)}
        if solution_column:
            answer = get_value(row, solution_column, number)
            if solution_required and (answer is None or answer != answer):  # pandas writes a missing value as NaN
                raise ValueError(
                    f"{place(solution_column, number)}: the answer is {answer}, and no reward could compare with it. "
                    "Leave such rows out, or give them an empty text to have them skipped by rewards that compare."
                )
            check_exact(answer, solution_column, number)
            made["solution"] = final_answer(answer) if _is_answer(answer) else answer
        if CONTRAST_COLUMN in converted:
            asked = row[CONTRAST_COLUMN]
            missing = not (asked.strip() if isinstance(asked, str) else asked)  # which the trainer refuses
            made[CONTRAST_COLUMN] = None if missing else make_prompt(asked, number, CONTRAST_COLUMN)
        elif contrast and contrast_instruction is not None:
            asked = get_value(row, prompt_column, number)
            made[CONTRAST_COLUMN] = write(asked, place(prompt_column, number), contrast_instruction)
        return made

    dataset = dataset.map(convert, with_indices=True, remove_columns=[*sources.values(), *sorted(unwanted)])
    if isinstance(dataset, Dataset) and solution_column:
        warn_of_unreadable_golds(dataset)
    return dataset


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


def final_answer(solution) -> str:
    r"""
    Text of the answer that a reward compares with, in a form that math-verify reads correctly.

    `"... #### 1,018"` is `"1018"`, a formula `11\sqrt{2}` is `"$11\sqrt{2}$"`, a list of answers is one text, a number
    or a worked solution is itself.
    """
    if solution is None:
        return ""  # accuracy_reward skips a solution that it cannot parse
    if isinstance(solution, str) and "####" in solution:
        solution = solution.rsplit("####", 1)[1].strip().replace(",", "")
    return as_gold(solution)


def _is_answer(value) -> bool:
    """Whether math-verify could read it. Tests of a program, for example, are for a reward of the user's own."""
    return not any(isinstance(part, dict) for part in (value if isinstance(value, list) else [value]))


def _load(entry: MathDataset | None, name: str, split: str, config: str | None, streaming: bool = False):
    if entry is None:
        return load_split(name, split, config, streaming)
    if entry.data_files and split != entry.split:  # the file would be loaded under any name
        raise ValueError(f"The data set {name!r} has no split {split!r}; it has {[entry.split]}.")
    return load_split(entry.hub_id, split, config or entry.config, streaming, entry.data_files)


def source_of(name: str, split: str, config: str | None = None, *, benchmark: bool = False) -> tuple[str | None, ...]:
    """
    Source of the rows of a data set: two names with one source are the same rows.

    Args:
        name (`str`): Name, as [`load_training_set`] or, with `benchmark`, [`load_benchmark`] takes it.
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


def _system_prompt(prompt: list[dict]) -> str | None:
    first = prompt[0] if prompt else {}
    return first["content"] if first.get("role") == "system" and isinstance(first.get("content"), str) else None

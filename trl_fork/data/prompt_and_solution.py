"""The columns that TRL's trainers and rewards read, made of those of a data set."""

from datasets import Dataset, IterableDataset

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
from .exact_numbers import check_exact
from .gold_checks import warn_of_unreadable_golds
from .prompt_formats import check_question, is_chat_formatted
from .prompt_writer import prompt_writer


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
            made["solution"] = final_answer(answer) if is_answer(answer) else answer
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


def is_answer(value) -> bool:
    """Whether math-verify could read it. Tests of a program, for example, are for a reward of the user's own."""
    return not any(isinstance(part, dict) for part in (value if isinstance(value, list) else [value]))

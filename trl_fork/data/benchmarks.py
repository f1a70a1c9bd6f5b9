"""Problems to evaluate on, each once and with an id."""

import hashlib
import json

from datasets import Dataset

from .._logging import logger
from .columns import PROMPT_COLUMNS, SOLUTION_COLUMNS, column_names, get_value, pick_column, place
from .contrast import CONTRAST_COLUMN
from .exact_numbers import check_exact
from .gold_checks import warn_of_unreadable_golds
from .math_datasets import BENCHMARKS, BOXED_INSTRUCTION, find_dataset, strip_instruction
from .prompt_and_solution import final_answer
from .prompt_formats import check_question, is_in_chat_format
from .prompt_writer import has_known_instruction, only_user_message, prompt_writer
from .splits import load_entry


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
            Short name of one of [`~data.math_datasets.BENCHMARKS`], or anything [`~data.splits.load_split`] takes.
        prompt_template (`str`, *optional*):
            Prompt as plain text, for base models; `{question}` stands for the problem. The paper's is
            [`~data.math_datasets.PAPER_PROMPT`].
        instruction (`str`, *optional*):
            Text of the user message, for models with a chat template; by default the problem and the request to
            answer within `\\boxed{}`. `"{question}"` is the problem as it stands, with the white space around it, as
            [`~data.load_training_set`] takes it without an instruction; only DAPO-Math-17k's and guru's are left out.
        system_prompt (`str`, *optional*):
            Message of the system before that of the user.
        trained_prompt (`dict`, *optional*):
            Result of [`~data.training_sets.training_prompt`] for the model's training, in place of the default
            instruction.
        split (`str`, *optional*):
            Name of the split; by default the one of the table, or `"test"`.
        config (`str`, *optional*):
            Configuration of a Hub data set; by default the one of the table.
        prompt_column, solution_column (`str`, *optional*):
            Arguments of [`~data.to_prompt_and_solution`]; by default those of the table.
        contrast_instruction (`str`, *optional*):
            Text after the question in a further column `contrast_prompt`, as in [`~data.to_prompt_and_solution`].

    Returns:
        [`~datasets.Dataset`] with the columns `prompt` (a conversation, or a text with `prompt_template`), `solution`
        (text that math-verify reads as the answer) and `id` (`str`, different for every problem, and the same wherever
        it stands in the file). Prompts in chat format stay as they are, as in training, unless `prompt_template` or
        `instruction` is given, or the data set's own instruction asks for a format that no reward reads.

    Raises:
        `ValueError`: if two problems have one id, and as [`~data.splits.load_split`] and
            [`~data.to_prompt_and_solution`] do.
    """
    entry = find_dataset(BENCHMARKS, name, config)
    dataset = load_entry(entry, name, split or (entry.split if entry else "test"), config)
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
    if copies := len(dataset) - len(rows):
        logger.warning(f"{name}: {len(rows)} problems, as {copies} of {len(dataset)} rows are copies of others.")
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

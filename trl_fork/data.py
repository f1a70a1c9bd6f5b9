"""Data sets to TRL's `prompt` and `solution` columns: files, the Hub, and the paper's by short name."""

import hashlib
import json
import os
import re
from pathlib import Path

from datasets import Dataset, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from trl import is_conversational

from ._trl import logger
from .exact_numbers import check_exact, load_exact
from .math_datasets import (
    BENCHMARKS,
    BOXED_INSTRUCTION,
    PAPER_PROMPT,
    TRAINING_SETS,
    MathDataset,
    as_gold,
    find_dataset,
    strip_instruction,
)


# In order of preference. `answer` comes before `solution`: where a data set has both, `solution` is a worked text and
# `answer` its last line.
PROMPT_COLUMNS = ("prompt", "question", "problem")
SOLUTION_COLUMNS = ("ground_truth", "reward_model.ground_truth", "final_answer", "answer", "solution")

# How prompts begin that a chat template has written: a start token, or a role. Such a text is what the model reads.
_CHAT_FORMAT = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>|\[gMASK\](?:<sop>)?|<BOS_TOKEN>)?\s*"
    r"(?:<\|im_(?:start|user|system)\|>|<\|start_header_id\|>|<\|header_start\|>|<start_of_turn>|<\|turn>|\[INST\]"
    r"|\[SYSTEM_PROMPT\]|<<SYS>>|<\|(?:system|user|assistant)(?:_start)?\|>|<\uff5c(?:User|Assistant)\uff5c>"
    r"|<\|start\|>(?:system|developer|user|assistant)|<\|start_of_role\|>|<\|START_OF_TURN_TOKEN\|>)"
)

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def load_split(
    name: str, split: str, config: str | None = None, streaming: bool = False, data_files: str | None = None
):
    """
    Load one split of a data set: from the Hub, a folder of `save_to_disk`, or a JSON, JSONL, Parquet or CSV file.

    Args:
        name (`str`): Hub name or local path. A file is the data set, whatever `split` says.
        split (`str`): Name of the split.
        config (`str`, *optional*): Configuration of a Hub data set.
        streaming (`bool`, *optional*, defaults to `False`): Whether to stream it.
        data_files (`str`, *optional*): The only file of a Hub data set to load, as its split.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`].

    Integers that a column of numbers would round, such as those beyond 64 bits, are texts in the columns of a JSON,
    JSONL or CSV file.

    Raises:
        `ValueError`: if a local path looks like none of these, or does not have the split (naming those it has).
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in _FILE_BUILDERS:
            raise ValueError(f"dataset_name: cannot read {name!r}; files must be one of {sorted(_FILE_BUILDERS)}.")
        exact = load_exact(path)
        if exact is not None:
            return exact.to_iterable_dataset() if streaming else exact
        return load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=streaming)
    if path.suffix in _FILE_BUILDERS:
        raise ValueError(f"dataset_name: there is no file {name!r} (looked from {Path.cwd()}).")
    if (path / "state.json").is_file():
        return load_from_disk(name)
    if (path / "dataset_dict.json").is_file():
        data = load_from_disk(name)
    else:
        files = {split: data_files} if data_files else None
        data = load_dataset(name, config, data_files=files, streaming=streaming)
    if split not in data:
        raise ValueError(f"The data set {name!r} has no split {split!r}; it has {sorted(data)}.")
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
    instruction: str | None = None,
    prompt_template: str | None = None,
):
    """
    Load problems to train on, with the columns `prompt` and `solution`.

    Args:
        name (`str`):
            Short name of one of [`~math_datasets.TRAINING_SETS`], or anything [`load_split`] takes.
        split (`str`, *optional*, defaults to `"train"`):
            Name of the split.
        config (`str`, *optional*):
            Configuration of a Hub data set; by default the one of the table.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to stream it.
        deduplicate (`bool`, *optional*):
            Whether to keep each problem once, and print how many there are. By default for the sets of the table that
            repeat problems: DAPO-Math-17k has each of its problems about a hundred times.
        prompt_column, solution_column, instruction, prompt_template (`str`, *optional*):
            See [`to_prompt_and_solution`]. Sets of the table have known columns, and ask for `\\boxed{}` unless told
            otherwise.

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
        instruction=instruction,
        prompt_template=prompt_template,
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
        `dict`: `{"instruction": ...}` or `{"prompt_template": ...}`, with `{question}` in it; or `None` where prompts
        are in chat format already, which it leaves as they are. Where these are conversations that all (of the first
        thousand) begin with one system prompt, `{"system_prompt": ...}`.
    """
    if prompt_template is not None:
        return {"prompt_template": PAPER_PROMPT if prompt_template == "paper" else prompt_template}
    entry = find_dataset(TRAINING_SETS, name, config)
    if instruction is None and entry is None:
        dataset = _load(entry, name, split, config, streaming)
        column = _pick("prompt_column", prompt_column, PROMPT_COLUMNS, _columns(dataset))
        prompt = _get(next(iter(dataset)), column)
        if is_chat_formatted(prompt):
            return None
        if is_conversational({"prompt": prompt}):
            system_prompts = {_system_prompt(_get(row, column)) for row in dataset.take(1000)}
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
) -> Dataset:
    """
    Load the problems of a benchmark, each once.

    Args:
        name (`str`):
            Short name of one of [`~math_datasets.BENCHMARKS`], or anything [`load_split`] takes.
        prompt_template (`str`, *optional*):
            Prompt as plain text, for base models; `{question}` stands for the problem. The paper's is
            [`~math_datasets.PAPER_PROMPT`].
        instruction (`str`, *optional*):
            Text of the user message, for models with a chat template; by default the problem and the request to
            answer within `\\boxed{}`. `"{question}"` is the problem as it stands, with the white space around it, as
            [`load_training_set`] takes it without an instruction; only DAPO-Math-17k's and guru's are left out.
        system_prompt (`str`, *optional*):
            Message of the system before that of the user.
        trained_prompt (`dict`, *optional*):
            What [`training_prompt`] says of the model's training, in place of the default instruction.
        split (`str`, *optional*):
            Name of the split; by default the one of the table, or `"test"`.
        config (`str`, *optional*):
            Configuration of a Hub data set; by default the one of the table.
        prompt_column, solution_column (`str`, *optional*):
            See [`to_prompt_and_solution`]; by default those of the table.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt` (a conversation, or a text with `prompt_template`), `solution`
        (text that math-verify reads as the answer) and `id` (`str`, different for every problem, and the same wherever
        it stands in the file). Prompts in chat format stay as they are, as in training, unless `prompt_template` or
        `instruction` is given, or the data set's own instruction asks for what no reward reads.

    Raises:
        `ValueError`: if two problems have one id, and as [`load_split`] and [`to_prompt_and_solution`] do.
    """
    entry = find_dataset(BENCHMARKS, name, config)
    dataset = _load(entry, name, split or (entry.split if entry else "test"), config)
    columns = _columns(dataset)
    prompt_column = prompt_column or (entry.prompt_column if entry else None)
    solution_column = solution_column or (entry.solution_column if entry else None)
    prompt_column = _pick("prompt_column", prompt_column, PROMPT_COLUMNS, columns)
    solution_column = _pick("solution_column", solution_column, SOLUTION_COLUMNS, columns)
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
    # Of prompts in chat format only what was asked for in this call is put into them, or refused ...
    keep = prompt_writer(**given)
    # ... but a single message of the user is a question too.
    keep_message = prompt_writer(system_prompt=None if prompt_template else system_prompt)

    problems: dict[str, dict] = {}  # by what makes a problem: copies of a row, as files for avg@k have them, are one
    for number, row in enumerate(dataset):
        asked, solution = _get(row, prompt_column), _get(row, solution_column)
        if not isinstance(asked, (str, list)):
            raise ValueError(f"{name!r}, row {number}, column {prompt_column!r}: {asked!r} is no question.")
        check_exact(solution, solution_column, number)
        solution = final_answer(solution)
        if entry and entry.context_column and row.get(entry.context_column):
            asked = f"{row[entry.context_column]}\n{asked}"
        if not is_in_chat_format(asked):
            prompt, question = ask(asked), strip_instruction(asked)
        elif (content := _only_user_message(asked)) is not None:
            prompt = (ask if has_instruction or _has_known_instruction(content) else keep_message)(asked)
            question = strip_instruction(content)
        else:
            prompt, question = keep(asked), json.dumps(asked, ensure_ascii=False)
        digest = hashlib.sha256(f"{question}\0{solution}".encode()).hexdigest()[:16]
        identity = str(row[entry.id_column]) if entry and entry.id_column else digest
        problems.setdefault(digest, {"prompt": prompt, "solution": solution, "id": identity})
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
    return Dataset.from_list(rows)


def to_prompt_and_solution(
    dataset: Dataset | IterableDataset,
    *,
    prompt_column: str | None = None,
    solution_column: str | None = None,
    instruction: str | None = None,
    prompt_template: str | None = None,
):
    """
    Map a data set to the columns TRL's trainers and rewards read.

    `prompt` becomes a conversation of one user message, or a plain text with `prompt_template`. A prompt that is a
    conversation already stays as it is, unless one of the two is given: then it must be one user message, and loses
    the instruction that DAPO-Math-17k or guru wrote into it. A text that a chat template has written stays a text, as
    it is. `solution` becomes what [`final_answer`] makes of it. Other columns stay.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The data set.
        prompt_column (`str`, *optional*):
            Column of the question. By default the first there is of `prompt`, `question`, `problem`, in any case.
        solution_column (`str`, *optional*):
            Column of the answer, with a dot for a nested one. By default the first there is of `ground_truth`,
            `reward_model.ground_truth`, `final_answer`, `answer`, `solution`.
        instruction (`str`, *optional*):
            Text of the user message; `{question}` stands for the question. By default the question alone.
        prompt_template (`str`, *optional*):
            Prompt as plain text, for base models; `{question}` stands for the question. `"paper"` is the paper's.

    Returns:
        The mapped data set.

    Raises:
        `ValueError`: if a column is missing, naming those there are and those wanted; if `instruction` or
            `prompt_template` leaves the question out, or both are given; if a prompt in chat format, other than one
            message of the user, is to be written anew; or if an answer is a number that has been rounded.
    """
    write = prompt_writer(prompt_template=prompt_template, instruction=instruction)
    columns = _columns(dataset)
    prompt_column = _pick("prompt_column", prompt_column, PROMPT_COLUMNS, columns)
    solution_column = _pick("solution_column", solution_column, SOLUTION_COLUMNS, columns)

    # Renamed first: `map` keeps the type of a column that keeps its name, and an integer `solution` would stay one.
    sources = {prompt_column.split(".")[0], solution_column.split(".")[0]}
    for name in sources:
        dataset = dataset.rename_column(name, f"_{name}")

    def convert(row, number):
        prompt, solution = _get(row, f"_{prompt_column}"), _get(row, f"_{solution_column}")
        check_exact(solution, solution_column, number)
        return {"prompt": write(prompt), "solution": final_answer(solution)}

    return dataset.map(convert, with_indices=True, remove_columns=[f"_{name}" for name in sources])


def drop_repeated_problems(dataset: Dataset, prompt_column: str | None = None) -> Dataset:
    """
    Keep the first row of each problem, by the text of the question.

    Args:
        dataset ([`~datasets.Dataset`]):
            The data set. Rows are read from disk in pieces; only the texts that differ are held in memory.
        prompt_column (`str`, *optional*):
            Column of the question, found by its usual names if not given.
    """
    prompt_column = _pick("prompt_column", prompt_column, PROMPT_COLUMNS, _columns(dataset))
    column = prompt_column.split(".")[0]
    first: dict[str, int] = {}
    seen: set[str] = set()
    position = 0
    # As Arrow tables, ten times as fast as rows, and only new values are taken apart: 1.8 million rows are read here.
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        for value in table[column].to_pylist():
            raw = str(value)
            if raw not in seen:
                seen.add(raw)
                first.setdefault(_question({column: value}, prompt_column), position)
            position += 1
    return dataset.select(first.values())


def final_answer(solution) -> str:
    r"""
    The answer that a reward compares with, as a text that math-verify reads correctly.

    `"... #### 1,018"` is `"1018"`, a formula `11\sqrt{2}` is `"$11\sqrt{2}$"`, a list of answers is one text, a number
    or a worked solution is itself.
    """
    if solution is None:
        return ""  # accuracy_reward leaves out what it cannot parse
    if isinstance(solution, str) and "####" in solution:
        solution = solution.rsplit("####", 1)[1].strip().replace(",", "")
    return as_gold(solution)


def _load(entry: MathDataset | None, name: str, split: str, config: str | None, streaming: bool = False):
    if entry is None:
        return load_split(name, split, config, streaming)
    return load_split(entry.hub_id, split, config or entry.config, streaming, entry.data_files)


def is_chat_formatted(prompt) -> bool:
    """Whether a prompt is a text that a chat template has written, such as `<|im_start|>user` and what follows."""
    return isinstance(prompt, str) and _CHAT_FORMAT.match(prompt) is not None


def is_in_chat_format(prompt) -> bool:
    """Whether a prompt needs no wrapping: it is a conversation, or a text that a chat template has written."""
    return is_chat_formatted(prompt) or is_conversational({"prompt": prompt})


def prompt_writer(
    *, prompt_template: str | None = None, instruction: str | None = None, system_prompt: str | None = None
):
    """
    The function from what a row asks to its prompt, for training and for evaluation.

    Args:
        prompt_template, instruction, system_prompt (`str`, *optional*):
            See [`load_benchmark`]. A prompt in chat format stays as it is without them.

    Returns:
        `Callable`: takes a question, a conversation, or a text in chat format, and for errors where it stands; gives a
        conversation or a text.

    Raises:
        `ValueError`: if `instruction` or `prompt_template` leaves the question out, or two are given that exclude each
            other. The function raises it for a prompt in chat format that they cannot be put into.
    """
    if prompt_template is not None and (instruction is not None or system_prompt):
        other = "instruction" if instruction is not None else "system_prompt"
        raise ValueError(
            f"prompt_template and {other} are both set, but a prompt is a plain text (prompt_template, for base "
            f"models) or a message ({other}, for models with a chat template). Remove one of them."
        )
    if prompt_template == "paper":
        prompt_template = PAPER_PROMPT
    for name, text in (("prompt_template", prompt_template), ("instruction", instruction)):
        if text is not None and "{question}" not in text:
            raise ValueError(f"{name} must contain '{{question}}', got {text!r}: the model would not see it.")
    stands = instruction == "{question}"  # the question as it stands, but for an instruction that no reward reads
    named = {"prompt_template": prompt_template, "instruction": instruction, "system_prompt": system_prompt}
    named = {name: text for name, text in named.items() if text and not (stands and name == "instruction")}

    def as_prompt(question: str):
        if prompt_template is not None:
            return prompt_template.replace("{question}", question)
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [*system, {"role": "user", "content": (instruction or "{question}").replace("{question}", question)}]

    def write(asked, where: str = "the data set"):
        if is_chat_formatted(asked):
            if wrapping := " and ".join(name for name, text in named.items() if text != "{question}"):
                raise ValueError(
                    f"{where}: the prompt is in chat format already ({asked[:40]!r}...), and {wrapping} would wrap it "
                    f"a second time. Leave {wrapping} unset to take such prompts as they are, or name a column with "
                    "the question alone in prompt_column."
                )
            return asked
        if is_conversational({"prompt": asked}):
            content = _only_user_message(asked)
            rewrites = bool(named) or (stands and content is not None and _has_known_instruction(content))
            return as_prompt(_question({"prompt": asked}, "prompt")) if rewrites else asked
        rewrites = bool(set(named) - {"system_prompt"}) or (stands and _has_known_instruction(asked))
        return as_prompt(strip_instruction(asked) if rewrites else asked)

    return write


def _only_user_message(prompt) -> str | None:
    """The text of a conversation that is one message of the user."""
    if isinstance(prompt, str) or [message["role"] for message in prompt] != ["user"]:
        return None
    content = prompt[0]["content"]
    return content if isinstance(content, str) else None


def _has_known_instruction(text: str) -> bool:
    return strip_instruction(text) != text.strip()


def _system_prompt(prompt: list[dict]) -> str | None:
    first = prompt[0] if prompt else {}
    return first["content"] if first.get("role") == "system" and isinstance(first.get("content"), str) else None


def _question(row: dict, column: str) -> str:
    prompt = _get(row, column)
    if not is_conversational({"prompt": prompt}):
        return strip_instruction(prompt)
    if [message["role"] for message in prompt] != ["user"]:
        raise ValueError(
            f"A prompt has messages of {[message['role'] for message in prompt]}; with instruction, prompt_template, "
            "system_prompt or deduplicate it must be one message of the user. Leave them unset to take conversations "
            "as they are."
        )
    return strip_instruction(prompt[0]["content"])


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
        first, dot, rest = name.partition(".")
        if first in columns:
            return name
        in_other_case = [column for column in columns if column.lower() == first] if not given else []
        if in_other_case:
            return f"{in_other_case[0]}{dot}{rest}"
    wanted = repr(given) if given else f"one of {list(candidates)}"
    raise ValueError(
        f"{argument}: the data set has no column {wanted}; it has {columns}. Set {argument} to one of these."
    )


def _get(row: dict, column: str):
    for part in column.split("."):
        row = row[part]
    return row

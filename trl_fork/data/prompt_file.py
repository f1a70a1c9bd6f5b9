"""
The prompt of a model's training, saved beside the model for its evaluation and its card.

No other file holds it. A chat template is saved with the tokenizer, but not the arguments it was called with. TRL's
supervised trainers read a column `chat_template_kwargs` of the data set, GRPO does not.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import cached_file

from .._files import write_json
from .math_datasets import PAPER_PROMPT
from .yaml_values import json_object


FILE_NAME = "forking_prompt.json"
_KINDS: dict[str, type] = {
    "instruction": str,
    "prompt_template": str,
    "system_prompt": str,
    "chat_template_kwargs": dict,
    "stop": list,
}
_EXAMPLE = '{"enable_thinking": false}'
# Arguments of `apply_chat_template` that are not for the template.
_RESERVED = ("conversation", "tokenize", "add_generation_prompt", "return_dict", "return_tensors", "padding")


def save_prompt(
    directory: str | Path,
    prompt: dict[str, str] | None,
    *,
    chat_template_kwargs: dict[str, Any] | None = None,
    generation_kwargs: dict[str, Any] | None = None,
) -> None:
    """
    Write the prompt of a training run into its output directory, for its checkpoints as well.

    Args:
        directory (`str` or `Path`): The output directory.
        prompt (`dict`, *optional*): Result of [`~data.training_sets.training_prompt`].
        chat_template_kwargs, generation_kwargs (`dict`, *optional*): Those of the run's configuration; of the latter
            the stop strings are kept.

    If all of them are empty, an earlier run's file is removed.
    """
    stop = [text for name in ("stop", "stop_strings") for text in _as_list((generation_kwargs or {}).get(name))]
    content = {**(prompt or {}), "chat_template_kwargs": chat_template_kwargs, "stop": stop}
    content = {name: value for name, value in content.items() if value}
    path = Path(directory) / FILE_NAME
    if not content:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content, ensure_ascii=False)


def find_prompt(model: str | Path) -> tuple[dict[str, Any], str] | None:
    """
    Find the prompt that a model was trained with, and its file.

    Args:
        model (`str` or `Path`): Output directory, checkpoint in it, or name on the Hub.

    Returns:
        `tuple`: a dictionary with some of the keys `"instruction"`, `"prompt_template"`, `"system_prompt"`,
        `"chat_template_kwargs"` and `"stop"`, and the path; or `None` if there is no such file.

    Raises:
        `ValueError`: if the file does not hold such a dictionary.
    """
    folder = Path(model)
    is_checkpoint = folder.is_dir() and folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
    for place in (model, folder.parent) if is_checkpoint else (model,):
        try:
            path = cached_file(str(place), FILE_NAME)
        except OSError:  # transformers raises this for a missing file, and if the Hub cannot be reached
            continue
        if path is not None:
            return _read(path), path
    return None


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict], chat_template_kwargs: dict[str, Any] | None = None
) -> tuple[str, list[int]]:
    """
    Encode a prompt for the model as `GRPOTrainer` does: `(text, ids)`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model.
        prompt (`str` or `list[dict]`): Plain text, or a conversation, to which the chat template is applied.
        chat_template_kwargs (`dict`, *optional*): Arguments of the template, such as `{"enable_thinking": False}`.
    """
    if isinstance(prompt, str):
        return prompt, tokenizer(prompt)["input_ids"]
    text = str(
        tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **(chat_template_kwargs or {})
        )
    )
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def default_stop(prompt_template: str | None) -> list[str]:
    r"""
    Stop string for a base model that goes on to another question: the label before `{question}` on a new line.

    The paper's template, `"User:\n{question}..."`, gives `["\nUser:"]`. A template without such a label gives none.
    """
    template = PAPER_PROMPT if prompt_template == "paper" else prompt_template
    if not template:
        return []
    before = template.partition("{question}")[0].rstrip()
    label = before.rpartition("\n")[2].strip()
    return [f"\n{label}"] if re.fullmatch(r"\W*\w[\w ]{0,30}:\W*|#+ \w[\w ]{0,30}", label) else []


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for data, prompts and stop strings, of a script that samples from models."""
    group = parser.add_argument_group("data and prompts, by the names of trl-fork train")
    group.add_argument("--dataset_config", help="configuration of a Hub data set")
    group.add_argument("--dataset_test_split", help="split of the problems (default: test, or a benchmark's)")
    group.add_argument("--prompt_column", help="column of the question (default: prompt, question or problem)")
    group.add_argument("--solution_column", help="column of the answer (default: ground_truth, answer or solution)")
    group.add_argument("--prompt_template", help="'paper', or text in which {question} stands for the question")
    group.add_argument(
        "--instruction",
        help="text of the user's message, with {question} in it (default: the prompt that the model was trained with "
        "by trl-fork train, or else the question and a request for a box)",
    )
    group.add_argument("--system_prompt", help="text of the system's message (default: the training's; '' is none)")
    add_chat_template_argument(group, "the training's")
    group.add_argument(
        "--stop",
        nargs="*",
        metavar="TEXT",
        help="texts that end a sample, and are cut off; none without a TEXT (default: the training's, or, with a "
        "plain text as prompt, its label before the question on a new line)",
    )


def add_chat_template_argument(group, default: str) -> None:
    """The option `--chat_template_kwargs`, with what it says of its default."""
    group.add_argument(
        "--chat_template_kwargs",
        type=_template_arguments,
        metavar="JSON",
        help=f"arguments of the chat template, such as {_EXAMPLE!r} (default: {default})",
    )


PROMPT_ARGUMENTS = (
    *("dataset_config", "dataset_test_split", "prompt_column", "solution_column", "prompt_template", "instruction"),
    *("system_prompt", "chat_template_kwargs", "stop"),
)


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Remove it, or write it anew.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object with some of {list(_KINDS)}. Remove it, or write it anew.")
    for name, kind in _KINDS.items():
        if not isinstance(content.get(name, kind()), kind):
            raise ValueError(f"{path}: {name} must be of type {kind.__name__}, got {content[name]!r}.")
    return {name: value for name, value in content.items() if name in _KINDS}


def _template_arguments(text: str) -> dict[str, Any]:
    value = json_object(text, _EXAMPLE)
    if reserved := [name for name in value if name in _RESERVED]:
        raise argparse.ArgumentTypeError(f"{reserved} are not for the template: they are set by what samples")
    return value


def _as_list(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())

"""Files of responses as token ids: those of `trl-fork evaluate`, or any JSONL with prompts and completions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.prompt_file import encode_prompt


PROMPT_FIELDS = ("prompt", "question", "problem")
COMPLETION_FIELDS = ("completion", "response", "text")
PROBLEM_FIELDS = ("problem_id", "id")


@dataclass
class Response:
    """
    One response to one prompt.

    Args:
        prompt_ids (`list[int]`): Tokens of the prompt.
        completion_ids (`list[int]`): Tokens of the response, with its end token if it was not cut off.
        prompt (`str`): Text of the prompt.
        problem (`str`): Name of the problem, the same for all responses to it.
        correct (`bool`, *optional*): Whether the answer is right; `None` if the file does not say.
        row (`dict`): The line it was read from.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    prompt: str
    problem: str
    correct: bool | None
    row: dict


def read_responses(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Iterator[Response]:
    """
    Read responses one at a time.

    A line holds a prompt (`prompt`, `question` or `problem`: text as the model read it, or a conversation, to which
    the chat template is applied) and a completion (`completion`, `response` or `text`: text, or a conversation of one
    message). Token ids in `prompt_ids` and `completion_ids` take precedence: text is tokenized again, which need
    not give the tokens that were sampled. The end token is appended to text whose line says `"truncated": false`.
    `correct` is read if present. `problem_id` (with `dataset`) names the problem, or else the prompt does.

    Args:
        path (`str` or `Path`): A JSONL file. A last line that a killed process has left half-written is skipped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model that will read the responses.
        limit (`int`, *optional*): Number of responses to read, the first ones.
        chat_template_kwargs (`dict`, *optional*): Arguments of the chat template, for prompts that are conversations.

    Yields:
        [`Response`].

    Raises:
        `ValueError`: for a damaged line, or one without prompt or completion, naming it.
    """
    for number, row in enumerate(read_lines(path), start=1):
        if limit is not None and number > limit:
            return
        yield _response(row, tokenizer, f"{path}, line {number}", chat_template_kwargs)


def read_lines(path: str | Path) -> Iterator[dict]:
    """Read the lines of a JSONL file, without a last one that is not finished."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number}, is no JSON: {error}. Remove that line.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}, is no JSON object: each line must be one response.")
            yield row


def prompt_of(row: dict) -> str | list[dict] | None:
    """The prompt of a line: text, or a conversation."""
    return _field(row, PROMPT_FIELDS)


def _response(row: dict, tokenizer, where: str, chat_template_kwargs: dict[str, Any] | None) -> Response:
    prompt, completion = prompt_of(row), _field(row, COMPLETION_FIELDS)
    prompt_ids, completion_ids = row.get("prompt_ids"), row.get("completion_ids")
    if (prompt is None and prompt_ids is None) or (completion is None and completion_ids is None):
        raise ValueError(
            f"{where} has the fields {sorted(row)}, but needs a prompt (one of {PROMPT_FIELDS} or prompt_ids) and a "
            f"completion (one of {COMPLETION_FIELDS} or completion_ids)."
        )
    if isinstance(prompt, list):
        prompt, ids = encode_prompt(tokenizer, prompt, chat_template_kwargs)
        prompt_ids = ids if prompt_ids is None else prompt_ids
    if prompt_ids is None:
        # A chat template writes the start token itself.
        has_special = any(prompt.startswith(token) for token in tokenizer.all_special_tokens)
        prompt_ids = tokenizer(prompt, add_special_tokens=not has_special)["input_ids"]
    if isinstance(completion, list):
        completion = completion[0]["content"]
    if completion_ids is None:
        completion_ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        if row.get("truncated") is False and tokenizer.eos_token_id is not None:
            completion_ids = [*completion_ids, tokenizer.eos_token_id]
    problem = _field(row, PROBLEM_FIELDS)
    correct = row.get("correct")
    return Response(
        prompt_ids=list(prompt_ids),
        completion_ids=list(completion_ids),
        prompt=prompt if prompt is not None else tokenizer.decode(prompt_ids),
        problem="/".join(str(part) for part in (row.get("dataset"), prompt if problem is None else problem) if part),
        correct=None if correct is None else bool(correct),
        row=row,
    )


def _field(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if row.get(name) is not None), None)

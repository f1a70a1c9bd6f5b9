"""Negative prompts: the prompt of a row with an instruction that asks for something else, such as a wrong answer."""

import re
from typing import Any

from .prompt_formats import is_chat_formatted, is_conversation


CONTRAST_COLUMN = "contrast_prompt"
_OWN_COLUMN = (
    f"Write the negative prompts into a column {CONTRAST_COLUMN!r} of the data, and leave contrast_instruction out."
)


def pattern_of(special_tokens: list[str]) -> re.Pattern | None:
    """A pattern that matches any of a tokenizer's special tokens; `None` if it has none."""
    return re.compile("|".join(map(re.escape, special_tokens))) if special_tokens else None


def with_instruction(prompt, instruction: str, where: str, special_tokens: re.Pattern | None = None) -> Any:
    """
    A copy of a prompt with an instruction after it, and a blank line between them.

    Args:
        prompt (`str` or `list[dict]`):
            A text, at whose end the instruction is put; or a conversation, where it is put at the end of the last
            message of the user.
        instruction (`str`):
            The instruction.
        where (`str`):
            Place of the prompt, as the beginning of an error.
        special_tokens (`re.Pattern`, *optional*):
            Result of [`pattern_of`]: a text with such a token is taken for one that a chat template has written.

    Returns:
        `str` or `list[dict]`: as the prompt.

    Raises:
        `ValueError`: if the place of the instruction is not known: in a text that a chat template has written, in a
            conversation without a message of the user, and in a message with other parts than texts.
    """
    added = f"\n\n{instruction}"
    if isinstance(prompt, str):
        marker = special_tokens.search(prompt) if special_tokens else None
        if marker or is_chat_formatted(prompt):
            what = f"holds the special token {marker[0]!r}" if marker else "is in chat format already"
            raise ValueError(
                f"{where}: contrast_instruction belongs after the question, whose end is not known in a text that "
                f"{what}: {prompt[:60]!r}. {_OWN_COLUMN}"
            )
        return prompt + added
    last = max((i for i, message in enumerate(prompt) if message.get("role") == "user"), default=None)
    if last is None:
        raise ValueError(
            f"{where}: contrast_instruction belongs after the last message of the user, and there is none among those "
            f"of {[message.get('role') for message in prompt]}. {_OWN_COLUMN}"
        )
    content: Any = prompt[last].get("content")
    if isinstance(content, str):
        content = content + added
    elif isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = [*content, {"type": "text", "text": added}]
    else:
        raise ValueError(
            f"{where}: contrast_instruction can be put after texts only, and the last message of the user is "
            f"{str(content)[:60]!r}. {_OWN_COLUMN}"
        )
    return [*prompt[:last], {**prompt[last], "content": content}, *prompt[last + 1 :]]


def contrast_prompt_of(
    example: dict, instruction: str | None, where: str, special_tokens: re.Pattern | None = None
) -> Any:
    """
    The negative prompt of a row: its column `contrast_prompt` or, in data without it, the prompt with the instruction.

    Args:
        example (`dict`): The row.
        instruction (`str`, *optional*): `contrast_instruction`.
        where (`str`): Place of the row, as the beginning of an error.
        special_tokens (`re.Pattern`, *optional*): As in [`with_instruction`].

    Raises:
        `ValueError`: if there is neither, if the column is empty there or of another form than the prompt, and as
            [`with_instruction`] does.
    """
    if CONTRAST_COLUMN not in example:
        if instruction is None:
            raise ValueError(
                f"{where}: a credit rule needs contrast_log_probs, the log-probabilities of the completion after a "
                f"negative prompt, and there is none. Set contrast_instruction, such as 'Note: Intentionally generate "
                f"an incorrect answer.', or add a column {CONTRAST_COLUMN!r}."
            )
        return with_instruction(example["prompt"], instruction, where, special_tokens)
    prompt = example[CONTRAST_COLUMN]
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise ValueError(
            f"{where}: {CONTRAST_COLUMN} is {prompt!r}, and a credit rule needs the log-probabilities after it. Give "
            "every row a negative prompt, or remove the column and set contrast_instruction."
        )
    if isinstance(example["prompt"], str) != isinstance(prompt, str):
        forms = ["a text" if isinstance(value, str) else "a conversation" for value in (example["prompt"], prompt)]
        raise ValueError(
            f"{where}: prompt is {forms[0]} and {CONTRAST_COLUMN} {forms[1]} ({str(prompt)[:60]!r}). Write both in "
            "one form."
        )
    if not (isinstance(prompt, str) or is_conversation(prompt)):
        raise ValueError(
            f"{where}: {CONTRAST_COLUMN} must be a conversation of messages with role and content, as prompt is, got "
            f"{str(prompt)[:60]!r}."
        )
    return prompt

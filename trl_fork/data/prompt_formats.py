"""Forms of a prompt: a text, a conversation, or a text to which a chat template has already been applied."""

import re

from trl import is_conversational


# Beginnings of prompts that a chat template has written: a start token, or a role. The model reads them as they are.
_CHAT_FORMAT = re.compile(
    r"\s*(?:<s>|<bos>|<\|endoftext\|>|<\|begin_of_text\|>|<\|startoftext\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>|\[gMASK\](?:<sop>)?|<BOS_TOKEN>)?\s*"
    r"(?:<\|im_(?:start|user|system)\|>|<\|start_header_id\|>|<\|header_start\|>|<start_of_turn>|<\|turn>|\[INST\]"
    r"|\[SYSTEM_PROMPT\]|<<SYS>>|<\|(?:system|user|assistant)(?:_start)?\|>|<\uff5c(?:User|Assistant)\uff5c>"
    r"|<\|start\|>(?:system|developer|user|assistant)|<\|start_of_role\|>|<\|START_OF_TURN_TOKEN\|>)"
)


def is_conversation(prompt) -> bool:
    """Whether TRL takes it for a list of messages."""
    return prompt != [] and is_conversational({"prompt": prompt})


def is_chat_formatted(prompt) -> bool:
    """Whether a prompt is a text that a chat template has written, such as one that begins with `<|im_start|>user`."""
    return isinstance(prompt, str) and _CHAT_FORMAT.match(prompt) is not None


def is_in_chat_format(prompt) -> bool:
    """Whether a prompt needs no wrapping: it is a conversation, or a text that a chat template has written."""
    return is_chat_formatted(prompt) or is_conversation(prompt)


def check_question(prompt, where: str) -> None:
    """
    Refuse a prompt without a question: a missing or blank text, or a value that is not a conversation.

    Args:
        prompt: Value of the data set.
        where (`str`): Its place, as the beginning of the error.

    Raises:
        `ValueError`: naming the place, the value and the remedy.
    """
    if isinstance(prompt, str):
        is_question = bool(prompt.strip())
    else:
        is_question = is_conversation(prompt) and all(
            isinstance(message, dict) and "content" in message for message in prompt
        )
        if is_question and prompt[-1].get("role") == "user":
            content = prompt[-1]["content"]
            is_question = bool(content.strip() if isinstance(content, str) else content)
    if not is_question:
        raise ValueError(
            f"{where}: the question is {prompt!r}, where a text or a conversation of messages with role and content "
            "is needed. Leave such rows out, or name another column with prompt_column."
        )

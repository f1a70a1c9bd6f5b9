"""What a prompt may be: a text, a conversation, or a text to which a chat template has been applied already."""

import re

from trl import is_conversational


# How prompts begin that a chat template has written: a start token, or a role. Such a text is what the model reads.
_CHAT_FORMAT = re.compile(
    r"\s*(?:<s>|<bos>|<\|endoftext\|>|<\|begin_of_text\|>|<\|startoftext\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>|\[gMASK\](?:<sop>)?|<BOS_TOKEN>)?\s*"
    r"(?:<\|im_(?:start|user|system)\|>|<\|start_header_id\|>|<\|header_start\|>|<start_of_turn>|<\|turn>|\[INST\]"
    r"|\[SYSTEM_PROMPT\]|<<SYS>>|<\|(?:system|user|assistant)(?:_start)?\|>|<\uff5c(?:User|Assistant)\uff5c>"
    r"|<\|start\|>(?:system|developer|user|assistant)|<\|start_of_role\|>|<\|START_OF_TURN_TOKEN\|>)"
)


def is_conversation(prompt) -> bool:
    """Whether it is a list of messages, to TRL."""
    return prompt != [] and is_conversational({"prompt": prompt})


def is_chat_formatted(prompt) -> bool:
    """Whether a prompt is a text that a chat template has written, such as `<|im_start|>user` and what follows."""
    return isinstance(prompt, str) and _CHAT_FORMAT.match(prompt) is not None


def is_in_chat_format(prompt) -> bool:
    """Whether a prompt needs no wrapping: it is a conversation, or a text that a chat template has written."""
    return is_chat_formatted(prompt) or is_conversation(prompt)


def check_question(prompt, where: str) -> None:
    """
    Refuse what asks nothing: a missing or blank text, or what is no conversation.

    Args:
        prompt: What a data set has.
        where (`str`): Where it stands, as the error begins.

    Raises:
        `ValueError`: naming the place, what is there, and what to do.
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

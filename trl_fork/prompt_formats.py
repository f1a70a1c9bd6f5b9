"""What a prompt may be: a text, a conversation, or a text to which a chat template has been applied already."""

import re

from trl import is_conversational


# What opens a message in the chat formats of common models. A problem does not hold these.
_CHAT_FORMAT = re.compile(
    r"<\|(im_start|start_header_id|header_start|start_of_role|im_user|im_system|user|system|START_OF_TURN_TOKEN)\|>"
    r"|<start_of_turn>|<\|turn>|<\|start\|>(system|developer|user)|<\uff5cUser\uff5c>|\A\s*(<s>)?\s*\[(INST|SYSTEM_PROMPT)\]"
)


def is_conversation(prompt) -> bool:
    """Whether it is a list of messages, to TRL."""
    return prompt != [] and is_conversational({"prompt": prompt})


def is_in_chat_format(prompt) -> bool:
    """Whether it is a text to which a chat template has been applied."""
    return isinstance(prompt, str) and _CHAT_FORMAT.search(prompt) is not None


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

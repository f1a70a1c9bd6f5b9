"""From the question of a row to its prompt: a template, an instruction, or the question as it stands."""

from .columns import get_value, place
from .contrast import with_instruction
from .math_datasets import PAPER_PROMPT, strip_instruction
from .prompt_formats import check_question, is_chat_formatted, is_conversation


def prompt_writer(
    *, prompt_template: str | None = None, instruction: str | None = None, system_prompt: str | None = None
):
    """
    Make the function from a row's question to its prompt, for training and for evaluation.

    Args:
        prompt_template, instruction, system_prompt (`str`, *optional*):
            Arguments of [`load_benchmark`]. Without them a prompt in chat format stays as it is.

    Returns:
        `Callable`: takes a question, a conversation, or a text in chat format, its place for errors, and optionally a
        text to put after the question and a blank line; returns a conversation or a text.

    Raises:
        `ValueError`: if `instruction` or `prompt_template` leaves the question out, or two are given that exclude each
            other. The function raises it for a prompt in chat format that they, or the text after the question, cannot
            be put into.
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

    def as_prompt(question: str, addition: str | None):
        if addition is not None:
            question = f"{question}\n\n{addition}"
        if prompt_template is not None:
            return prompt_template.replace("{question}", question)
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [*system, {"role": "user", "content": (instruction or "{question}").replace("{question}", question)}]

    def write(asked, where: str = "the data set", addition: str | None = None):
        if is_chat_formatted(asked):
            if wrapping := " and ".join(name for name, text in named.items() if text != "{question}"):
                raise ValueError(
                    f"{where}: the prompt is in chat format already ({asked[:40]!r}...), and {wrapping} would wrap it "
                    f"a second time. Leave {wrapping} unset to take such prompts as they are, or name a column with "
                    "the question alone in prompt_column."
                )
            return asked if addition is None else with_instruction(asked, addition, where)
        if is_conversation(asked):
            content = only_user_message(asked)
            rewrites = bool(named) or (stands and content is not None and has_known_instruction(content))
            if rewrites:
                return as_prompt(question_of({"prompt": asked}, "prompt", where), addition)
            return asked if addition is None else with_instruction(asked, addition, where)
        rewrites = bool(set(named) - {"system_prompt"}) or (stands and has_known_instruction(asked))
        return as_prompt(strip_instruction(asked) if rewrites else asked, addition)

    return write


def only_user_message(prompt) -> str | None:
    """The text of a conversation that is one message of the user."""
    if isinstance(prompt, str) or [message["role"] for message in prompt] != ["user"]:
        return None
    content = prompt[0]["content"]
    return content if isinstance(content, str) else None


def has_known_instruction(text: str) -> bool:
    """Whether a question ends in an instruction of the known data sets."""
    return strip_instruction(text) != text.strip()


def question_of(row: dict, column: str, where: str | None = None) -> str:
    """
    The question of a row without a known instruction.

    Raises:
        `ValueError`: naming the place, for a conversation that is more than one text of the user.
    """
    where = where or place(column)
    prompt = get_value(row, column)
    check_question(prompt, where)
    if not is_conversation(prompt):
        return strip_instruction(prompt)
    if [message["role"] for message in prompt] != ["user"]:
        raise ValueError(
            f"{where}: a prompt has messages of {[message['role'] for message in prompt]}; with instruction, "
            "prompt_template, system_prompt or deduplicate it must be one message of the user. Leave them unset to "
            "take conversations as they are."
        )
    content = prompt[0]["content"]
    if not isinstance(content, str):
        raise ValueError(
            f"{where}: the content of the message is in parts ({str(content)[:60]}...); with instruction, "
            "prompt_template or deduplicate it must be a text. Leave them unset to take conversations as they are."
        )
    return strip_instruction(content)

"""One episode of a team: what has been said to all, and what each role has read and written itself."""

from collections.abc import Callable
from typing import Any

from ..data.prompt_formats import is_conversation
from .roles import Role
from .templates import fill, named_role


class Episode:
    """
    A shared transcript, and a private history of each role.

    Args:
        prompt (`str` or `list[dict]`): Prompt of the data set.
        columns (`dict[str, Any]`): The columns that templates name, of the same row of the data set.
        place (`str`): Where the prompt is, as the beginning of an error.

    Raises:
        `ValueError`: for a conversation that does not end with a text of the user, or a column without a value.
    """

    def __init__(self, prompt: str | list[dict], columns: dict[str, Any], place: str):
        self.question, self.earlier = question_of(prompt, place)
        self.columns = {name: _text_of(name, value, place) for name, value in columns.items()}
        self.said: list[tuple[str, str]] = []  # (role, message), in the order of the turns
        self._heard: dict[str, int] = {}  # messages that were there when a role had spoken last
        self._messages: dict[str, list[dict]] = {}  # private histories, of conversations
        self._tokens: dict[str, list[int]] = {}  # private histories, of plain texts

    @property
    def conversational(self) -> bool:
        return self.earlier is not None

    @property
    def transcript(self) -> str:
        """The messages so far, each from a line of its own on."""
        return _lines(self.said)

    def tell(self, role: Role) -> str | list[dict]:
        """What a role is told in its next turn: messages, whole, or the text that is added to what it has read."""
        first = role.name not in self._heard
        text = fill(role.prompt if first else role.reply, self._value_of(role))
        if self.earlier is None:
            return text
        if first:
            system = None if role.system is None else [{"role": "system", "content": role.system}]
            self._messages[role.name] = self.earlier.copy() if system is None else system
        self._messages[role.name] += [{"role": "user", "content": text}]
        return self._messages[role.name]

    def read_before(self, role: Role) -> list[int]:
        """Tokens before what is told next, for plain texts; none before its first turn."""
        return self._tokens.get(role.name, [])

    def take(self, role: Role, prompt_ids: list[int], completion_ids: list[int], completion: str) -> None:
        """Note what a role has read and written in its turn."""
        if self.conversational:
            self._messages[role.name] += [{"role": "assistant", "content": completion}]
        self._tokens[role.name] = [*prompt_ids, *completion_ids]
        self.said.append((role.name, role.message_of(completion)))
        self._heard[role.name] = len(self.said)

    def _value_of(self, role: Role) -> Callable[[str], str]:
        def value(field: str) -> str:
            if (name := named_role(field)) is not None:
                return next((message for speaker, message in reversed(self.said) if speaker == name), "")
            if field == "transcript":
                return _lines(self.said[self._heard.get(role.name, 0) :])
            return self.question if field == "prompt" else self.columns[field]

        return value


def question_of(prompt: str | list[dict], place: str) -> tuple[str, list[dict] | None]:
    """
    Text of a prompt, and the messages before its last one; `None` if it is a plain text.

    Raises:
        `ValueError`: for a conversation that does not end with a text of the user.
    """
    if isinstance(prompt, str):
        return prompt, None
    if not is_conversation(prompt) or prompt[-1].get("role") != "user":
        last = prompt[-1].get("role") if is_conversation(prompt) else prompt
        raise ValueError(
            f"{place}: the prompt must be a text or a conversation that ends with a message of the user, got {last!r} "
            "at its end: the field {prompt} of a role is that message. Cut the conversation after it."
        )
    content = prompt[-1]["content"]
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(
            f"{place}: the last message of the prompt must be a text, got {content!r}: templates of roles hold text "
            "alone. Leave out what is no text."
        )
    return content, list(prompt[:-1])


def _text_of(name: str, value: Any, place: str) -> str:
    if value is None:
        raise ValueError(
            f"{place}, column {name!r}: there is no value, and the template of a role names the column. Leave such "
            f"rows out: dataset.filter(lambda row: row[{name!r}] is not None)."
        )
    return str(value)


def _lines(said: list[tuple[str, str]]) -> str:
    # Further lines of a message are indented: one of them could otherwise pass for the message of another role.
    return "\n".join(f"{name}: " + "\n    ".join(message.splitlines()) for name, message in said)

"""What one member of a team is told, what the others read of it, and how it samples."""

import re
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

from .templates import fields_of, malformed_fields, named_role


TEXT_OF_YAML = " To YAML 1e-3 is a text: write 1.0e-3 or 0.001."
# Names of a metric, of a field `messages[NAME]` and of a line of the transcript.
_NAME = re.compile(r"\w(?:[\w .-]*\w)?")


@dataclass(frozen=True)
class Role:
    r"""
    A role of a team. All roles are played by the same policy; they differ in what they are told.

    The fields of a template are identifiers in braces. `{prompt}` is the text of the data set's prompt: the string, or
    the content of its last user message. `{transcript}` is what has been said, names before colons, with
    further lines of a message indented. `{messages[NAME]}` is the latest message of the role NAME. Every other
    identifier is a column of the data set: only the roles whose templates name a column see it. Other braces, such as
    those of `\boxed{}`, stay as they are; `{{x}}` writes `{x}`, and `{{{x}}}` the value of `x` in braces.

    Args:
        name (`str`):
            Name of the role in the transcript, in metrics and for rewards.
        prompt (`str`):
            Template of its first turn: the user's message, or, where the prompts of the data are plain texts, the
            whole prompt.
        reply (`str`, *optional*, defaults to `"{transcript}"`):
            Template of its later turns, which follows what it has read and written before. There `{transcript}` holds
            only what the others have said since its last turn.
        system (`str`, *optional*):
            Its system message, in place of all messages of the data's prompt before the last user message. For prompts
            that are conversations.
        message (`str`, *optional*):
            Regular expression. The first group of its last match in a completion is what the other roles read, and the
            empty text where nothing matches. What the role has written beside it stays private: the role alone sees it
            in its later turns. By default the others read the whole completion.
        temperature (`float`, *optional*):
            Temperature at which its completions are sampled; `args.temperature` by default. The trainer takes
            log-probabilities at `args.temperature`.
        beta (`float`, *optional*):
            KL coefficient of its completions with `objective="trajectory_balance"`; `args.beta` by default.

    Raises:
        `ValueError`: for a name, template, regular expression or number that cannot be used.
        `TypeError`: for a text that is none.
    """

    name: str
    prompt: str
    reply: str = "{transcript}"
    system: str | None = None
    message: str | None = None
    temperature: float | None = None
    beta: float | None = None

    def __post_init__(self):
        for field, required in (("name", 1), ("prompt", 1), ("reply", 1), ("system", 0), ("message", 0)):
            value = getattr(self, field)
            if not isinstance(value, str) and (required or value is not None):
                raise TypeError(
                    f"{self._where(field)} must be a text, got {value!r}. Write it in quotes"
                    f"{'' if required else ', or leave it out'}."
                )
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"The name of a role must consist of letters, digits, spaces and any of _ . - within, got "
                f"{self.name!r}: templates and metrics contain it. Give the role such a name."
            )
        if not self.prompt.strip():
            raise ValueError(f"{self._where('prompt')} is empty. Write what the role is told, such as '{{prompt}}'.")
        for field in ("prompt", "reply"):
            if found := malformed_fields(getattr(self, field)):
                raise ValueError(
                    f"{self._where(field)} has {found[0]!r}, which is near a field and would stay as it is. Write "
                    "{prompt}, {transcript} or {messages[NAME]}, without a format, an attribute or a blank."
                )
        if self.message is not None:
            self._check_message()
        for field, meaning in (("temperature", "a sampling temperature"), ("beta", "a KL coefficient")):
            value = getattr(self, field)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and isfinite(value) and value > 0):
                raise ValueError(
                    f"{self._where(field)} must be a finite number above 0, got {value!r}: it is {meaning}. Leave it "
                    f"out for args.{field}.{TEXT_OF_YAML if isinstance(value, str) else ''}"
                )

    def _where(self, field: str) -> str:
        return f"Role {self.name!r}: {field}"

    def _check_message(self) -> None:
        try:
            groups = re.compile(self.message or "").groups
        except re.error as error:
            raise ValueError(
                f"{self._where('message')} is no regular expression of Python: {error}, in {self.message!r}. Correct "
                "it, or leave it out for the whole completion."
            ) from None
        if groups == 0:
            raise ValueError(
                f"{self._where('message')} has no group, got {self.message!r}: the first group is what the other "
                r"roles read. Put that part in parentheses, as in 'Answer: (.*)'."
            )

    def message_of(self, completion: str) -> str:
        """The part of a completion that the other roles read."""
        if self.message is None:
            return completion
        matches = list(re.finditer(self.message, completion))
        return (matches[-1][1] or "") if matches else ""

    @cached_property
    def columns(self) -> dict[str, str]:
        """The columns of the data set that its templates name, with the argument that does."""
        known = ("prompt", "transcript")
        return {
            field: argument
            for argument in ("reply", "prompt")
            for field in fields_of(getattr(self, argument))
            if field not in known and named_role(field) is None
        }


def check_roles(roles: tuple[Role, ...], rounds: int) -> None:
    """
    Check the roles of a team against each other.

    Raises:
        `TypeError`: for a role or a number of rounds that is none.
        `ValueError`: for a team without roles, with a name twice, or with a template that reads a message which is not
            there yet.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(
            f"rounds must be a whole number of at least 1, got {rounds!r}: every role has a turn in each."
        )
    for number, role in enumerate(roles):
        if not isinstance(role, Role):
            raise TypeError(f"roles[{number}] must be a Role, got {role!r}. Write Role(name=..., prompt=...).")
    names = [role.name for role in roles]
    if not names:
        raise ValueError("A team needs at least one role, got none. Pass roles=[Role(name, prompt), ...].")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(
            f"The roles {twice} are there more than once, in {names}: a message could not be told from another's. "
            "Give each role a name of its own; for several turns of the same roles set rounds."
        )
    for number, role in enumerate(roles):
        for argument in ("prompt", "reply"):
            for field in fields_of(getattr(role, argument)):
                name = named_role(field)
                if name is not None and name not in names:
                    raise ValueError(
                        f"Role {role.name!r}: {argument} has the field {{{field}}}, and there is no role {name!r}; "
                        f"there are {names}. Name one of them."
                    )
                if name is not None and argument == "prompt" and name not in names[:number]:
                    raise ValueError(
                        f"Role {role.name!r}: prompt has the field {{{field}}}, which would always be empty: the "
                        f"prompt is that of its first turn, before which {names[:number] or 'no role'} spoke. "
                        "Take the field out, change the order of the roles, or put it into reply."
                    )
    if rounds > 1 and len(roles) == 1 and roles[0].reply == "{transcript}":
        raise ValueError(
            f"Role {names[0]!r}: reply is '{{transcript}}', which would always be empty: it holds what others have "
            f"said, and the team has one role. Write what the role is told in rounds 2 to {rounds}."
        )

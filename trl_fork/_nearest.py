"""Sentences about a name that there is not, with the nearest one that there is."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`"; did you mean 'entropies'?"` for the known name that is nearest, or nothing where none is near."""
    names = [str(other) for other in known]
    near = get_close_matches(str(name), names, 1) or get_close_matches(str(name).lower(), names, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def not_a_choice(name: str, value: object, choices: Iterable[object]) -> str:
    """A sentence without a full stop about a value that an option cannot have."""
    choices = list(choices)
    return f"{name} must be one of {choices}, got {value!r}{did_you_mean(value, choices)}"


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise a `ValueError` that names the option, the choices and the nearest one, unless the value is one of them."""
    choices = list(choices)
    if value not in choices:
        sentence = not_a_choice(name, value, choices)
        raise ValueError(sentence if sentence.endswith("?") else f"{sentence}.")

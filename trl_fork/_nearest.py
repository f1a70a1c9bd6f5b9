"""The end of a sentence about a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`"; did you mean 'entropies'?"` for the known name that is nearest, or nothing where none is near."""
    names = [str(other) for other in known]
    near = get_close_matches(str(name), names, 1) or get_close_matches(str(name).lower(), names, 1)
    return f"; did you mean {near[0]!r}?" if near else ""

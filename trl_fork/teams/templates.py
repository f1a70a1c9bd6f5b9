"""Templates of prompts: identifiers in braces are fields, and every other brace stays as it is."""

import re
from collections.abc import Callable


# What begins like a field of every team.
_NEARLY = re.compile(r"\{\s*(?:prompt|transcript|messages)\b[^{}]*\}")
# A field with the braces around it. `messages[NAME]` is the latest message of a role.
_FIELD = re.compile(r"(\{+)(messages\[[^\[\]{}]*\]|[^\W\d]\w*)(\}+)")


def fields_of(template: str) -> list[str]:
    """
    Names of the fields of a template, each once, in their order.

    Args:
        template (`str`): Text with fields such as `{prompt}` and `{messages[solver]}`. `{{prompt}}` is not a field.
    """
    return list(dict.fromkeys(name for braces, name in map(_parts, _FIELD.finditer(template)) if braces % 2))


def malformed_fields(template: str) -> list[str]:
    """What begins like a field of a team and is none, such as `{prompt:>3}` or `{transcript.text}`."""
    return [match[0] for match in _NEARLY.finditer(template) if not _FIELD.fullmatch(match[0])]


def fill(template: str, value_of: Callable[[str], str]) -> str:
    r"""
    Put values into a template.

    A doubled brace stands for one brace, next to a field only: `{{x}}` writes `{x}`, and `{{{x}}}` the value of `x` in
    braces. Braces around anything else are not changed, so that `\boxed{}` and `\frac{1}{2}` stay what they are.

    Args:
        template (`str`): Text with fields.
        value_of (`Callable`): Takes the name of a field and returns its value, whose own braces are not fields.
    """

    def value(match: re.Match) -> str:
        braces, name = _parts(match)
        inner = value_of(name) if braces % 2 else name
        before, after = match[1][braces:], match[3][braces:]  # of unequal numbers of braces, the outer ones are text
        return f"{before}{'{' * (braces // 2)}{inner}{'}' * (braces // 2)}{after}"

    return _FIELD.sub(value, template)


def named_role(field: str) -> str | None:
    """NAME of a field `messages[NAME]`; `None` of another field."""
    return field[len("messages[") : -1] if field.endswith("]") else None


def _parts(match: re.Match) -> tuple[int, str]:
    return min(len(match[1]), len(match[3])), match[2]

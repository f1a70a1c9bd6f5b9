"""A recipe as YAML, each value with where it is from."""

import textwrap
from pathlib import Path
from typing import Any

import yaml

from .fates import OPEN, Conversion, Fate


def as_yaml(conversion: Conversion, path: str) -> str:
    """
    Write a recipe.

    Args:
        conversion ([`Conversion`]): The recipe.
        path (`str`): The file that it is made of.
    """
    lines = [f"# Made by `trl-fork recipes --from` of {Path(path).name}, a file for {conversion.tool}."]
    if questions := conversion.open_questions:
        lines += ["#", "# To be decided:"]
        for fate in questions:
            text = f"{fate.key}: {fate.why or fate.verdict}"
            lines += textwrap.wrap(text, 110, initial_indent="# - ", subsequent_indent="#   ")
    lines.append("")
    from_keys = _sources(conversion.fates)
    for name, value in conversion.settings.items():
        lines.append(f"{_entry(name, value)}  # {', '.join(from_keys[name])}")
    return "\n".join(lines) + "\n"


def _sources(fates: list[Fate]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for fate in fates:
        for name in fate.settings:
            words = fate.key if fate.given else f"{fate.key}, not in the file"
            found.setdefault(name, []).append(f"{words} (to be decided)" if fate.verdict in OPEN else words)
    return found


def _entry(name: str, value: Any) -> str:
    """One line of YAML; a float keeps its point, so that YAML reads a number and not a text."""
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        return f"{name}: {repr(value).replace('e', '.0e')}"
    if isinstance(value, (dict, list)):
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
        return f"{name}: {text.strip()}"
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.safe_dump(value, default_style=style, width=10_000, allow_unicode=True)
    return f"{name}: {text.removesuffix('...' + chr(10)).strip()}"

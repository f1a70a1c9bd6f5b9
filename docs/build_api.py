"""
Write docs/api.md from signatures and docstrings, as griffe reads them.

    python docs/build_api.py
"""

import logging
import re
from importlib import import_module
from pathlib import Path

import griffe
from jinja2 import Environment, StrictUndefined


PAGE = Path(__file__).with_name("api.md")
TEMPLATE = Path(__file__).with_name("api.md.jinja")
# What may be relied on: the names that the package and its rooms list in their `__init__`.
ROOMS = (
    "",
    ".trainer",
    ".credit",
    ".looped",
    ".teams",
    ".rewards",
    ".data",
    ".generation",
    ".evaluation",
    ".analysis",
    ".report",
)
# Our docstrings are in doc-builder's grammar: types are in the docstring, and one entry may name two parameters.
OPTIONS = {
    "returns_multiple_items": False,
    "returns_named_value": False,
    "trim_doctest_flags": False,
    "warn_missing_types": False,
    "warn_unknown_params": False,
}
_GROUP = re.compile(r"(?:^Parameters:\n)?^ +> (.+)\n\n", flags=re.MULTILINE)  # doc-builder's headings within a section
_REFERENCE = re.compile(r"\[`~?(?:[a-z_]\w*\.)*([\w.]+)`\]")  # doc-builder's [`~module.Name`]


class _Strict(logging.Handler):
    """What griffe warns of is text that would not be on the page."""

    def emit(self, record):
        raise RuntimeError(record.getMessage())


logging.getLogger("griffe").addHandler(_Strict(logging.WARNING))


def render() -> str:
    package = griffe.load("trl_fork", search_paths=[PAGE.parents[1]], docstring_parser="google")
    rooms = []
    for module in (import_module(f"trl_fork{room}") for room in ROOMS):
        things = [getattr(module, name) for name in module.__all__]
        paths = [f"{thing.__module__}.{thing.__qualname__}" for thing in things if callable(thing)]  # else a constant
        rooms.append((module.__name__, [package[path.removeprefix("trl_fork.")] for path in paths]))
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    page = template.render(rooms=rooms, signature=signature, sections=sections, methods=methods)
    return re.sub(r"\n{3,}", "\n\n", _REFERENCE.sub(r"`\1`", page)).strip() + "\n"


def methods(thing) -> list:
    """The documented public methods that this package has written, those of the trainer's mixins among them."""
    members = thing.all_members.values() if thing.is_class else ()
    return sorted((m for m in members if m.is_public and m.has_docstring and not m.is_class), key=lambda m: m.name)


def signature(thing) -> str:
    """Names and defaults. The types are in the docstring."""
    if not (thing.is_function or thing.is_class):  # a property
        return thing.name
    for parameter in thing.parameters:
        parameter.annotation = None
    return thing.signature(return_type=False) or thing.name


def sections(thing) -> list:
    if not thing.has_docstring:
        raise ValueError(f"{thing.path} is public and has no docstring.")
    thing.docstring.value = _GROUP.sub(r"Parameters: \1\n", thing.docstring.value)
    return thing.docstring.parse("google", **OPTIONS)


if __name__ == "__main__":
    PAGE.write_text(render())

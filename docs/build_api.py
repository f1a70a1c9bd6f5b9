"""
Pages of the API in MyST Markdown, from signatures and docstrings as griffe reads them: nothing is imported.

`docs/conf.py` writes them into `docs/api` before Sphinx reads its sources. Each object is a directive of Sphinx's
domain for Python, so that search, the index and references know it.
"""

import ast
import logging
import re
from functools import partial
from pathlib import Path

import griffe
from jinja2 import Environment, StrictUndefined


ROOT = Path(__file__).resolve().parents[1]
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
_REFERENCE = re.compile(r"\[`~?((?:[a-z_]\w*\.)*)([\w.]+)`\]")  # doc-builder's [`Name`] and [`~module.Name`]


class _Strict(logging.Handler):
    """What griffe warns of is text that would not be on the page."""

    def emit(self, record):
        raise RuntimeError(record.getMessage())


logging.getLogger("griffe").addHandler(_Strict(logging.WARNING))


class Api:
    """
    The public classes and functions of a package, and a page for each of its rooms.

    Args:
        package (`griffe.Module`, *optional*):
            The package; by default `trl_fork` of this checkout.
        rooms (`tuple[str, ...]`, *optional*):
            Its subpackages with public names, each with its leading dot; the empty string is the package itself.
    """

    def __init__(self, package: griffe.Module | None = None, rooms: tuple[str, ...] = ROOMS):
        self.package = package or griffe.load("trl_fork", search_paths=[ROOT], docstring_parser="google")
        self.rooms = {f"{self.package.path}{room}": self._public(room) for room in rooms}
        # Where an object is described, by the path of its definition: on the page of the first room that has its name.
        self.homes = {
            thing.path: f"{room}.{name}" for room in reversed(self.rooms) for name, thing in self.rooms[room].items()
        }
        # Definitions by the name and by the path that a user imports
        self.public = {name: thing.path for things in self.rooms.values() for name, thing in things.items()}
        self.public |= {
            f"{room}.{name}": thing.path for room, things in self.rooms.items() for name, thing in things.items()
        }

    def pages(self) -> dict[str, str]:
        """The text of each page, by the name of its room."""
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(TEMPLATE.read_text())
        pages = {}
        for room, things in self.rooms.items():
            page = template.render(
                room=self._module(room),
                things=things.values(),
                home=lambda thing: self.homes[thing.path],
                signature=signature,
                sections=sections,
                methods=methods,
                linked=self.linked,
            )
            pages[room] = re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"
        return pages

    @property
    def version(self) -> str:
        return ast.literal_eval(self.package["__version__"].value)

    def link(self, name: str) -> str:
        """A reference of Sphinx to a room by its path, or to a public object by its name."""
        if name in self.rooms:
            return f"{{py:obj}}`{name}`"
        home = next((home for home in self.homes.values() if home.endswith(f".{name}")), None)
        if home is None:
            raise ValueError(f"A link of {name!r} leads to the API, which has no such name.")
        return f"{{py:obj}}`{name} <{home}>`"

    def linked(self, text: str, thing: griffe.Object) -> str:
        """`text` of the docstring of `thing`, whose references are Sphinx's where they lead to a public object."""
        return _REFERENCE.sub(partial(self._reference, thing), text)

    def _reference(self, thing: griffe.Object, match: re.Match) -> str:
        modules, shown = match.groups()
        path = self._definition(f"{modules}{shown}", thing)
        owner, _, member = path.rpartition(".")
        if path in self.homes:
            return f"{{py:obj}}`{shown} <{self.homes[path]}>`"
        if owner in self.homes and member in {method.name for method in methods(self._object(owner))}:
            return f"{{py:obj}}`{shown} <{self.homes[owner]}.{member}>`"
        return f"`{shown}`"

    def _definition(self, name: str, thing: griffe.Object) -> str:
        """The path of the definition of what the docstring of `thing` calls `name`; of another package's, `name`."""
        first, _, rest = name.partition(".")
        if first in self.package.modules:
            path = f"{self.package.path}.{name}"
        elif first in self.public:
            path = f"{self.public[first]}.{rest}".rstrip(".")
        else:
            try:
                path = f"{thing.resolve(first)}.{rest}".rstrip(".")
            except griffe.NameResolutionError:
                path = name if rest else f"{thing.path}.{name}"
        if path in self.public:
            return self.public[path]
        if not path.startswith(f"{self.package.path}."):  # another package's
            return name
        try:
            return self._object(path).canonical_path
        except KeyError:
            raise ValueError(f"The docstring of {thing.path} refers to {name!r}, which is not there.") from None

    def _object(self, path: str) -> griffe.Object:
        return self.package[path.removeprefix(f"{self.package.path}.")]

    def _module(self, room: str) -> griffe.Module:
        return self.package if room == self.package.path else self._object(room)

    def _public(self, room: str) -> dict[str, griffe.Object]:
        module = self._module(f"{self.package.path}{room}")
        # Not `module[name]`, which is a submodule where one has the name of a function
        paths = _lazy_names(module) or {name: module.imports[name] for name in module.exports}
        things = {name: self._object(paths[name]) for name in sorted(paths)}
        return {name: thing for name, thing in things.items() if not thing.is_attribute}  # an attribute is a constant


def _lazy_names(module: griffe.Module) -> dict[str, str]:
    """The paths of names that a package lists in a call of `lazy_names`, without running it."""
    for node in ast.walk(ast.parse(module.filepath.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "lazy_names":
            places = ast.literal_eval(node.args[1])
            return {name: f"{module.path}.{place}.{name}" for place, names in places.items() for name in names}
    return {}


def methods(thing: griffe.Object) -> list[griffe.Object]:
    """The documented public methods that this package has written, those of the trainer's mixins among them."""
    members = thing.all_members.values() if thing.is_class else ()
    return sorted((m for m in members if m.is_public and m.has_docstring and not m.is_class), key=lambda m: m.name)


def signature(thing: griffe.Object) -> str:
    """Names and defaults in parentheses. The types are in the docstring."""
    if not (thing.is_function or thing.is_class):  # a property
        return ""
    for parameter in thing.parameters:
        parameter.annotation = None
    return thing.signature(return_type=False).removeprefix(thing.name)


def sections(thing: griffe.Object) -> list[griffe.DocstringSection]:
    if not thing.has_docstring:
        raise ValueError(f"{thing.path} is public and has no docstring.")
    thing.docstring.value = _GROUP.sub(r"Parameters: \1\n", thing.docstring.value)
    return thing.docstring.parse("google", **OPTIONS)

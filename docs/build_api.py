"""
Write docs/api.md from signatures and docstrings.

    python docs/build_api.py
"""

import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType

from trl_fork import ForkingGRPOConfig


PAGE = Path(__file__).with_name("api.md")
# What may be relied on: the names that the package and its rooms list in their `__init__`.
ROOMS = ("", ".trainer", ".credit", ".rewards", ".data", ".generation", ".evaluation", ".analysis", ".report")
HEADER = """# API

What may be relied on; everything else may change. Written from the docstrings by `python docs/build_api.py`.
"""
_SECTION = re.compile(r"(Args|Parameters|Attributes|Returns|Yields|Raises|Example):")
_REFERENCE = re.compile(r"\[`~?(?:[a-z_]\w*\.)*([\w.]+)`\]")  # doc-builder's [`~module.Name`]


def render() -> str:
    parts = [HEADER]
    for room in ROOMS:
        module = importlib.import_module(f"trl_fork{room}")
        parts.append(f"## {module.__name__}\n")
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):  # a constant
                continue
            parts.append(f"### {name}\n")
            parts.append(f"{signature(name, thing)}\n\n{to_markdown(thing)}\n")
            if inspect.isclass(thing):
                parts += [
                    f"{signature(f'.{key}', method)}\n\n{to_markdown(method)}\n" for key, method in methods(thing)
                ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))


def methods(cls: type) -> list[tuple[str, object]]:
    """The documented public methods that this package has written, those of the trainer's mixins among them."""
    found = {}
    for base in cls.__mro__:
        for name, value in vars(base).items() if base is cls or base.__name__.endswith("Mixin") else ():
            if isinstance(value, (FunctionType, property)) and not name.startswith("_") and value.__doc__:
                found.setdefault(name, value)
    return sorted(found.items())


def signature(name: str, thing) -> str:
    """Names and defaults. The types stand in the docstring, and the two hundred fields of a configuration in TRL's."""
    if isinstance(thing, property):
        return f"`{name}`"
    if inspect.isclass(thing) and issubclass(thing, ForkingGRPOConfig):
        return f"`class {name}(GRPOConfig)`"
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for key, parameter in inspect.signature(thing).parameters.items()
        if key != "self"
    ]
    plain = str(inspect.Signature(parameters)).replace("<factory>", "...")
    return f"`{'class ' if inspect.isclass(thing) else ''}{name}{plain}`"


def to_markdown(thing) -> str:
    """A docstring in TRL's grammar: sections become bold words, their entries lists, references code."""
    text = inspect.getdoc(thing)
    if not text or (inspect.isclass(thing) and "__doc__" not in vars(thing)):
        raise ValueError(f"{thing!r} is public and has no docstring.")
    lines, section, result = text.splitlines(), "", []
    for line in lines:
        if match := _SECTION.fullmatch(line):
            section = match[1]
            result += [f"**{section}**", ""]
        elif section == "Example" or not line.startswith("    "):
            result.append(line.removeprefix("    "))
        else:
            result.append(_entry(line.removeprefix("    "), section))
    return _REFERENCE.sub(r"`\1`", "\n".join(result))


def _entry(line: str, section: str) -> str:
    if line.startswith("> "):  # a group of parameters
        return f"*{line[2:]}*"
    if section in ("Returns", "Yields"):
        return line
    if line.startswith(" ") or (section == "Raises" and not line.startswith(("`", "["))):
        return f"  {line.strip()}"
    return "- " + re.sub(r"^([\w*]+(?:, [\w*]+)*) \(", lambda match: f"**{match[1]}** (", line)


if __name__ == "__main__":
    PAGE.write_text(render())

"""
The parts of the report. Each is a module of this package with two functions:

    run(number, seed, folder, progress) -> dict    # what was found, for JSON; `progress(text, found)` as it goes
    summary(found) -> str                          # one line
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Part:
    """
    One figure of the report.

    Args:
        name (`str`): Name on the command line, and of the module.
        title (`str`): What is counted, in a few words.
        number (`int`): How many there are in the report.
        quick (`int`): How many there are with `--quick`.
    """

    name: str
    title: str
    number: int
    quick: int

    @property
    def module(self) -> ModuleType:
        return import_module(f"{__package__}.{self.name}")


PARTS = {
    part.name: part
    for part in (
        Part("configurations", "bad configurations", 280, 12),
        Part("kills", "kills of a training under ZeRO-3", 20, 1),
        Part("answers", "hostile answers to the graders", 10_000, 58),
        Part("steps", "steps on two processes with empty, unequal and inert ranks", 100, 6),
        Part("pushes", "pushes to a Hub that refuses, fails and cuts", 24, 2),
        Part("pages", "pages and tables with hostile text, in a browser", 24, 4),
        Part("secrets", "files searched for tokens", 1, 1),
    )
}

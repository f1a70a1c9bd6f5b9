"""Mistakes drawn from the table of all options: misspelt names, names of other libraries, values of a wrong type."""

import random

from trl_fork.commands.renamed_options import OTHER_NAMES, REMOVED, RENAMED
from trl_fork.commands.train import make_parser

from .bad_configurations import Bad


KINDS = (
    "misspelt on the command line",
    "misspelt in a file",
    "renamed since",
    "removed since",
    "another library's name",
    "wrong type on the command line",
    "wrong type in a file",
)
NOT_OF_A_RUN = ("help", "recipe", "config", "accelerate_config")


def misspelt(name: str, generator: random.Random) -> str:
    """One letter left out, doubled, or exchanged with the next."""
    place = generator.randrange(1, len(name) - 1)
    how = generator.randrange(3)
    if how == 0:
        return name[:place] + name[place + 1 :]
    if how == 1:
        return name[:place] + name[place] + name[place:]
    return name[: place - 1] + name[place] + name[place - 1] + name[place + 1 :]


def type_of(action) -> str:
    """The type of an option, by the name that TRL keeps where it wraps `int` and `float`."""
    return "choice" if action.choices is not None else getattr(action.type, "__name__", "")


# A text that is no value of this type on a command line, and values that are none in a file.
WRONG_WORDS = {"int": "many", "float": "much", "string_to_bool": "perhaps", "choice": "whatever", "mapping": "[1"}
WRONG_VALUES = {
    "int": ("many", 1.5, [3], {"a": 1}, True),
    "float": ("much", [0.1], {"a": 1}, True),
    "string_to_bool": ("perhaps", 7, [True]),
    "choice": ("whatever", True),
    "mapping": (3, [1, 2], True),
}


class Drawing:
    """
    Draws mistakes without end.

    Args:
        seed (`int`): The same mistakes for the same seed.
    """

    def __init__(self, seed: int):
        self.generator = random.Random(seed)
        parser = make_parser()
        actions = [action for action in parser._actions if action.dest not in NOT_OF_A_RUN and action.option_strings]
        self.known = {name for action in parser._actions for name in action.option_strings}
        self.names = sorted({action.dest for action in actions if len(action.dest) > 5})
        self.typed = sorted((action for action in actions if type_of(action) in WRONG_WORDS), key=lambda a: a.dest)

    def draw(self, kind: str) -> Bad:
        choose = self.generator.choice
        if kind.startswith("misspelt"):
            while True:
                name = choose(self.names)
                wrong = misspelt(name, self.generator)
                if f"--{wrong}" not in self.known and wrong not in {*RENAMED, *REMOVED, *OTHER_NAMES}:
                    break
            on_line = kind == KINDS[0]
            return Bad(kind, (wrong, name), (f"--{wrong}", "1") if on_line else (), {} if on_line else {wrong: 1})
        if kind == "renamed since":
            old = choose(sorted(RENAMED))
            return Bad(kind, (old, RENAMED[old]), settings={old: 1})
        if kind == "removed since":
            old = choose(sorted(REMOVED))
            return Bad(kind, (old,), (f"--{old}", "1"))
        if kind == "another library's name":
            other = choose(sorted(OTHER_NAMES))
            return Bad(kind, (other, OTHER_NAMES[other]), (f"--{other}", "1"))
        action = choose(self.typed)
        if kind == "wrong type on the command line":
            return Bad(kind, (action.dest,), (f"--{action.dest}", WRONG_WORDS[type_of(action)]))
        values = WRONG_VALUES[type_of(action)]
        return Bad(kind, (action.dest,), settings={action.dest: choose(values)})

"""Parsers whose errors name the nearest option or value, and all of them at once."""

import argparse
import sys
from difflib import get_close_matches
from typing import NoReturn

from .._nearest import not_a_choice
from .program import PROGRAM


_REFUSED = object()  # in the place of a value that an option cannot have
_UNKNOWN = "there is no option "


class NearestOption(argparse.ArgumentParser):
    """
    A parser without abbreviations, whose error for an unknown option or value names the nearest one.

    One error names everything that is wrong, where argparse ends at the first value that an option cannot have. The
    message has no usage: with all of TRL's options, argparse's usage is pages long.
    """

    def __init__(self, *args, **kwargs):
        # A prefix would be taken for the only option that happens to begin with it.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self._problems: list[str] = []  # sentences about options and values, until all words have been read

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        misspelled = self.unknown_options(words)
        self._problems += misspelled
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown and not misspelled:  # otherwise they are those options and their values
            self._problems.append(f"{' '.join(map(repr, unknown))} belongs to no option")
        problems, self._problems = self._problems, []
        self.refuse(problems)
        return namespace, unknown

    # The two hooks of argparse that refuse a value. What is refused is noted down, so that the rest is read as well.
    def _get_value(self, action, arg_string):
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self._problems.append(str(error))
            return _REFUSED

    def _check_value(self, action, value):
        if value is _REFUSED or action.choices is None or value in action.choices:
            return
        name = max(action.option_strings, key=len, default=action.dest)
        self._problems.append(not_a_choice(name, value, action.choices))

    def unknown_options(self, words: list[str]) -> list[str]:
        """A sentence about each option of a command line that does not exist."""
        names = []
        for name in (word.partition("=")[0] for word in words):
            if name == "--":
                break
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                names.append(name)
        return [f"{_UNKNOWN}{name}{self.nearest(name, '--')}" for name in dict.fromkeys(names)]

    def refuse(self, problems: list[str]) -> None:
        """End the script with all problems at once, if there are any, as each start of a large job takes long."""
        if len(problems) > 1:
            self.error(f"{len(problems)} settings cannot be taken:" + "".join(f"\n  {text}" for text in problems))
        if problems:
            self.error(problems[0])

    def nearest(self, name: str, prefix: str = "") -> str:
        """The end of a sentence about an option that does not exist."""
        names = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        names = [option for option in names if "-" not in option]
        wanted = name.lstrip("-").replace("-", "_")
        if (news := self.news_of(wanted)) is not None:
            return f"; {news}"
        if (meant := self.meant_by(wanted)) is not None:
            return f"; did you mean {prefix}{meant}?"
        found = (
            [option for option in names if option.startswith(wanted)][:3]
            or get_close_matches(wanted, names, 1, cutoff=0.75)
            or [option for option in names if _begins(wanted, option)][:3]
            or get_close_matches(wanted, names, 1)
        )
        return f"; did you mean {' or '.join(prefix + option for option in found)}?" if found else ""

    def news_of(self, name: str) -> str | None:
        """What became of an option of an older release."""
        return None

    def meant_by(self, name: str) -> str | None:
        """The option that other libraries call by this name."""
        return None

    def error(self, message: str) -> NoReturn:
        found, self._problems = self._problems, []
        if found:  # argparse ends at words that it cannot sort
            # A required option is missing to argparse if its name is misspelled.
            is_known = message.startswith("the following arguments are required") and found[0].startswith(_UNKNOWN)
            self.refuse(found if is_known else [*found, message])
        self.exit(2, f"{self.prog}: error: {message}\nAll options: {self.prog} --help\n")


def _begins(wanted: str, option: str) -> bool:
    """Whether each word of a name is the beginning of a word of the option's: `grad_accum`, `epochs`."""
    return all(any(word.startswith(part) for word in option.split("_")) for part in wanted.split("_"))


class OptionParser(NearestOption):
    """
    [`~argparse.ArgumentParser`] for a script whose docstring is its help.

    Args:
        description (`str`, *optional*):
            The docstring.
        command (`str`, *optional*):
            The command of `trl-fork` that the script is, if it is one, for usage and messages.
    """

    def __init__(self, *, description: str | None, command: str | None = None):
        super().__init__(
            prog=command and f"{PROGRAM} {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

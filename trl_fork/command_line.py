"""Command lines that name the option that was meant, and whose help shows a script's own options first."""

import argparse
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from trl import TrlParser


class _NearestOption(argparse.ArgumentParser):
    """
    Options are written out, and one that does not exist ends the script with the nearest one that does.

    The message stands alone: of a script that takes all of TRL's options, argparse's usage is pages long.
    """

    def __init__(self, *args, **kwargs):
        # A prefix would be taken for whichever option happens to be the only one that begins so.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        # Before argparse looks: where a required option is misspelled, it would say that the option is missing.
        for name in (word.partition("=")[0] for word in words):
            if name == "--":
                break
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                self.error(f"there is no option {name}{self.nearest(name, '--')}")
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"{' '.join(map(repr, unknown))} belongs to no option")
        return namespace, unknown

    def nearest(self, name: str, prefix: str = "") -> str:
        """The end of a sentence about an option that does not exist."""
        names = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        names = [option for option in names if "-" not in option]
        wanted = name.lstrip("-").replace("-", "_")
        found = [option for option in names if option.startswith(wanted)][:3] or get_close_matches(wanted, names, 1)
        return f"; did you mean {' or '.join(prefix + option for option in found)}?" if found else ""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\nAll options: {self.prog} --help\n")


class OptionParser(_NearestOption):
    """[`~argparse.ArgumentParser`] for a script whose docstring is its help."""

    def __init__(self, *, description: str | None):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


class GroupedTrlParser(_NearestOption, TrlParser):
    """
    [`~trl.TrlParser`] with the options of its help in groups.

    Args:
        dataclass_types (`Iterable[type]`):
            As in [`~trl.TrlParser`].
        groups (`dict[str, Iterable[str]]`):
            Names of fields by title, in the order of the help. A field goes to the first group that names it.
        description (`str`, *optional*):
            What stands above.
    """

    def __init__(self, dataclass_types, *, groups: dict[str, Iterable[str]], description: str | None = None):
        super().__init__(
            dataclass_types, description=description, usage="%(prog)s [--config FILE] [--OPTION VALUE ...]"
        )
        self.formatter_class = _DefaultsHelpFormatter
        # `TrlParser` takes it out of the command line before argparse sees it.
        self.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file of options")
        for action in self._actions:  # what is shown of an option: HfArgumentParser takes --max-steps as well
            action.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
        left = self._optionals._group_actions
        for title, names in groups.items():
            wanted = set(names)
            group = self.add_argument_group(title)
            group._group_actions += [action for action in left if action.dest in wanted]
            left[:] = [action for action in left if action.dest not in wanted]

    def parse_args_and_config(self, args=None, **kwargs):
        words = []
        for word in sys.argv[1:] if args is None else args:
            words += ["--config", word.removeprefix("--config=")] if word.startswith("--config=") else [word]
        if words.count("--config") > 1:
            self.error("--config is given twice; a run has one file, and the command line changes single options")
        if "--config" in words:
            path = "".join(words[words.index("--config") + 1 :][:1])
            if not Path(path).is_file():
                self.error(f"--config: there is no file {path!r} (looked from {Path.cwd()})")
        try:
            return super().parse_args_and_config(words, **kwargs)
        except ValueError as error:  # a value that a configuration refuses, with its reason
            self.error(str(error))

    def set_defaults_with_config(self, **settings) -> list[str]:
        known = {action.dest for action in self._actions} - {"config"}
        for name in settings:
            if name not in known:
                self.error(f"the YAML file has a key {name!r}, which is no option{self.nearest(name)}")
        return super().set_defaults_with_config(**settings)


class _DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each help text, and the description as it was written."""

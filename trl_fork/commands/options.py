"""Command lines that name the option that was meant, and whose help shows a script's own options first."""

import argparse
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import get_type_hints

from trl import TrlParser
from yaml import YAMLError

from ..data.yaml_values import mapping, option_value
from .renamed_options import what_became_of


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
        self.refuse(self.unknown_options(words))
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"{' '.join(map(repr, unknown))} belongs to no option")
        return namespace, unknown

    def unknown_options(self, words: list[str]) -> list[str]:
        """A sentence about each option of a command line that does not exist."""
        names = []
        for name in (word.partition("=")[0] for word in words):
            if name == "--":
                break
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                names.append(name)
        return [f"there is no option {name}{self.nearest(name, '--')}" for name in dict.fromkeys(names)]

    def refuse(self, problems: list[str]) -> None:
        """End the script if there are problems, with all of them: each start of a large job takes its time."""
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
        found = [option for option in names if option.startswith(wanted)][:3] or get_close_matches(wanted, names, 1)
        return f"; did you mean {' or '.join(prefix + option for option in found)}?" if found else ""

    def news_of(self, name: str) -> str | None:
        """What became of an option that there used to be."""
        return None

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
        # Fields that may be lists or dictionaries; fsdp by its code, not by its type. Others are as well, to YAML.
        self._structured = {"fsdp"} | {
            name
            for dataclass in dataclass_types
            for name, kind in get_type_hints(dataclass).items()
            if re.search(r"\b(list|dict)\b", str(kind), re.IGNORECASE)
        }
        self._problems: list[str] = []  # of the command line, while the file is read
        # `TrlParser` takes it out of the command line before argparse sees it.
        self.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file of options")
        for action in self._actions:  # what is shown of an option: HfArgumentParser takes --max-steps as well
            action.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
            if action.dest.endswith("_kwargs"):  # texts to HfArgumentParser
                action.type = mapping
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
            position = words.index("--config")
            path = "".join(words[position + 1 :][:1])
            if not Path(path).is_file():
                self.error(f"--config: there is no file {path!r} (looked from {Path.cwd()})")
            # Beside the problems of the file, not after them
            self._problems = self.unknown_options(words[:position] + words[position + 2 :])
        try:
            return super().parse_args_and_config(words, **kwargs)
        except YAMLError as error:
            self.error(f"--config: {path!r} is no YAML: {error}")
        except TypeError as error:
            if "keywords must be strings" not in str(error):
                raise
            self.error(
                f"--config: {path!r} has a key that is no text (to YAML, a number, null, yes, no, on and off are none)"
            )
        except ValueError as error:  # a value that a configuration refuses, with its reason
            self.error(str(error))

    def set_defaults_with_config(self, **settings) -> list[str]:
        actions = {action.dest: action for action in reversed(self._actions) if action.dest != "config"}
        problems = []
        for name, value in settings.items():
            if name not in actions:
                problems.append(f"the YAML file has a key {name!r}, which is no option{self.nearest(name)}")
                continue
            if isinstance(value, (list, dict)) and name not in self._structured and actions[name].type is str:
                problems.append(f"the YAML file: {name} must be a text, got {value!r}")
                continue
            try:
                settings[name] = option_value(actions[name], value)
            except ValueError as error:
                problems.append(f"the YAML file: {error}")
        self.refuse(problems + self._problems)
        return super().set_defaults_with_config(**settings)

    def news_of(self, name: str) -> str | None:
        return what_became_of(name)


class _DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each help text, and the description as it was written."""

"""The options of the training: TRL's, transformers' and ours, from a recipe, a file and the command line."""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from trl import TrlParser
from yaml import YAMLError

from .._shipped import find_shipped, shipped_files
from ..data.yaml_values import mapping, option_value, tracker
from ..trainer.range_checks import known_choices
from .launch import add_launch_arguments, launch_options
from .options import NearestOption
from .program import PROGRAM
from .renamed_options import OTHER_NAMES, what_became_of


# Options that an error of TRL does not name, by its first words.
_UNNAMED = {"Config file": "--config: ", "You can't use 8 bit and 4 bit": "load_in_4bit, load_in_8bit: "}
_FILES = ("recipe", "config", "accelerate_config")  # options of the command line alone


class GroupedTrlParser(NearestOption, TrlParser):
    """
    [`~trl.TrlParser`] with the options of its help in groups.

    Args:
        dataclass_types (`Iterable[type]`):
            Argument of [`~trl.TrlParser`].
        groups (`dict[str, Iterable[str]]`):
            Names of fields by title, in the order of the help. A field goes to the first group that names it.
        description (`str`, *optional*):
            Text above the options.
        command (`str`, *optional*):
            The command of `trl-fork` that the script is, if it is one, for usage and messages.
    """

    def __init__(
        self,
        dataclass_types,
        *,
        groups: dict[str, Iterable[str]],
        description: str | None = None,
        command: str | None = None,
    ):
        super().__init__(
            dataclass_types,
            prog=command and f"{PROGRAM} {command}",
            description=description,
            usage="%(prog)s [--recipe NAME | --config FILE] [--OPTION VALUE ...]",
        )
        self.formatter_class = _DefaultsHelpFormatter
        # Fields that may be lists or dictionaries; fsdp by its code, not by its type. Others are as well, to YAML.
        kinds = {name: kind for part in dataclass_types for name, kind in get_type_hints(part).items()}
        self._structured = {"fsdp"} | {
            name for name, kind in kinds.items() if re.search(r"\b(list|dict)\b", str(kind), re.IGNORECASE)
        }
        self._nullable = {name for name, kind in kinds.items() if NoneType in get_args(kind)}
        # `TrlParser` takes --config out of the command line before argparse sees it, and this class the others.
        for name, value, text in (
            ("--recipe", "NAME", "recipe that comes with the package (trl-fork recipes lists them)"),
            ("--config", "FILE", "YAML file of options, instead of a recipe"),
        ):
            self.add_argument(name, metavar=value, default=argparse.SUPPRESS, help=text)
        add_launch_arguments(self)
        choices = known_choices()  # of fields whose type is any text
        for action in self._actions:  # spellings shown in the help: HfArgumentParser takes --max-steps as well
            action.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
            if action.dest.endswith("_kwargs"):  # HfArgumentParser takes these for texts
                action.type = mapping
            if action.dest == "report_to":
                action.type = tracker
            action.choices = action.choices or choices.get(action.dest)
        left = self._optionals._group_actions
        for title, names in groups.items():
            wanted = set(names)
            group = self.add_argument_group(title)
            group._group_actions += [action for action in left if action.dest in wanted]
            left[:] = [action for action in left if action.dest not in wanted]

    def parse_args_and_config(self, args=None, *others, **kwargs):
        words = self.with_config(sys.argv[1:] if args is None else list(args))
        if "--config" in words:
            position = words.index("--config")
            path = "".join(words[position + 1 :][:1])
            if not Path(path).is_file():
                recipe = f"; the recipe of this name is --recipe {path}" if path in shipped_files("recipes") else ""
                self.error(f"--config: there is no file {path!r} (looked from {Path.cwd()}){recipe}")
        try:
            return super().parse_args_and_config(words, *others, **kwargs)
        except YAMLError as error:
            self.error(f"--config: {path!r} is no YAML: {error}")
        except TypeError as error:
            if "keywords must be strings" not in str(error):
                raise
            self.error(
                f"--config: {path!r} has a key that is no text (to YAML, a number, null, yes, no, on and off are none)"
            )
        except ValueError as error:  # a value that a configuration refuses, with its reason
            names = next((names for words, names in _UNNAMED.items() if str(error).startswith(words)), "")
            self.error(names + str(error))

    def with_config(self, words: list[str]) -> list[str]:
        """The words with `--recipe NAME` and `--config=FILE` as the two words `--config FILE`, at most once."""
        separated: list[str] = []
        for word in words:
            name, equals, value = word.partition("=")
            separated += [name, value] if name in ("--config", "--recipe") and equals else [word]
        given = [word for word in separated if word in ("--config", "--recipe")]
        if len(given) > 1:
            how = f"{given[0]} is given twice" if len(set(given)) == 1 else "--recipe and --config are both given"
            self.error(f"{how}; a run has one file, and the command line changes single options")
        if given == ["--recipe"]:
            position = separated.index("--recipe")
            name = "".join(separated[position + 1 : position + 2])
            try:
                separated[position : position + 2] = ["--config", str(find_shipped("recipes", name))]
            except ValueError as error:
                own = " A file of your own goes into --config." if name.endswith((".yaml", ".yml")) else ""
                self.error(f"--recipe: {error}{own}")
        return separated

    def set_defaults_with_config(self, **settings) -> list[str]:
        settings, problems = self.checked(settings)
        self._problems += problems  # they are reported with those of the command line
        return super().set_defaults_with_config(**settings)

    def checked(self, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The settings of a YAML file that are values of options, and a sentence about each that is not."""
        actions = self.options_of_a_file()
        settings: dict[str, Any] = {}
        problems = []
        for name, value in given.items():
            if name not in actions:
                problems.append(f"the YAML file has a key {name!r}, which is no option{self.nearest_key(name)}")
                continue
            if isinstance(value, (list, dict)) and name not in self._structured and actions[name].type is str:
                problems.append(f"the YAML file: {name} must be a text, got {value!r}")
                continue
            try:
                converted = option_value(actions[name], value)
            except ValueError as error:
                problems.append(f"the YAML file: {error}")
                continue
            if converted is None and name not in self._nullable:
                default = actions[name].default
                problems.append(f"the YAML file: {name} must not be null; leave it out for its default, {default}")
                continue
            settings[name] = converted
        return settings, problems

    def options_of_a_file(self) -> dict[str, argparse.Action]:
        """The options that a YAML file may set, by name."""
        return {action.dest: action for action in reversed(self._actions) if action.dest not in _FILES}

    def nearest_key(self, name: str) -> str:
        """The end of a sentence about a key of a file that is not an option."""
        if f"--{name}" in ("--accelerate_config", *launch_options()) and name not in OTHER_NAMES:
            return f" of a run; it is for its launch: give it on the command line, {PROGRAM} train --{name}"
        return self.nearest(name)

    def news_of(self, name: str) -> str | None:
        return what_became_of(name)

    def meant_by(self, name: str) -> str | None:
        return OTHER_NAMES.get(name)


class _DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults after each help text, and the description as it was written."""

"""
Values of a YAML file, converted for the options of a parser.

YAML 1.1 reads `no` and `off` as booleans, and `1e-5` as a text. argparse converts texts, but takes any other value
as it is, so a wrong one would be noticed hours later or not at all.
"""

import argparse
import json
import re
from typing import Any

from .._nearest import did_you_mean


# Options of type text that also take a boolean.
_TEXT_OR_BOOLEAN = {"resume_from_checkpoint", "fsdp", "scale_rewards", "deepspeed"}
_MAPPING = '{"name": 1.0}'
# The value for "no" of options that have one.
_NOTHING = ("no", "off", "false", "none")
# At most three digits of exponent: a revision such as 12e4567 is a text.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")


def option_value(action: argparse.Action, value: Any) -> Any:
    """
    Convert a value of a YAML file for an option.

    Args:
        action (`argparse.Action`): The option, as [`~trl.TrlParser`] makes it of a field.
        value: Value that YAML has read.

    Raises:
        `ValueError`: if the option cannot have this value, naming both.
    """
    name = action.dest
    if name == "report_to":
        return [tracker(item) for item in (value if isinstance(value, list) else [value])]
    if value is None:
        if action.type in (int, float):  # not TRL's, which are for what may be `None`
            raise ValueError(f"{name} must be a number, got null; leave it out for its default, {action.default}")
        return "no" if "no" in (action.choices or ()) else None
    # The type is compared by name: TRL wraps `int` and `float` if a field may be `None`, and keeps the name.
    kind = getattr(action.type, "__name__", "")
    if kind == "string_to_bool":
        return _boolean(action, value)
    if kind == mapping.__name__:
        return _mapping(action, value)
    if action.nargs == "+" and kind in ("str", "int", "float"):
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (dict, list)) for item in items):
            raise ValueError(f"{name} must be a list of {'texts' if kind == 'str' else 'numbers'}, got {value!r}")
        return [_scalar(name, kind, item) for item in items]
    if action.choices is not None:
        return _choice(name, [str(choice) for choice in action.choices], value)
    if isinstance(value, str) and value.lower() in ("none", "null") and kind in ("int", "float"):
        return _checked(action, value)
    return _scalar(name, kind, value)


def mapping(text: str) -> dict[str, Any] | None:
    """The type of an option that is a dictionary, written as JSON on a command line."""
    if text.lower() in ("none", "null"):
        return None
    return json_object(text, _MAPPING)


def json_value(text: str, example: str) -> Any:
    """A value from the JSON of a command line. A key that stands twice is an error: one value would be lost."""

    def once(pairs):
        keys = [key for key, _ in pairs]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"the key {twice.pop()!r} stands twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error}); write such as {example!r}") from None


def json_object(text: str, example: str) -> dict[str, Any]:
    """A dictionary from the JSON of a command line. The error of argparse shows the example."""
    value = json_value(text, example)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as {example!r}")
    return value


def _mapping(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, dict):
        return numbers_in(value)
    if isinstance(value, str):
        return _checked(action, value)
    raise ValueError(f"{action.dest} must be a mapping of names to values, got {value!r}")


def tracker(value: Any) -> Any:
    """A name of `report_to`, in which transformers writes `none` for nothing."""
    if value is None or str(value).lower() in _NOTHING:
        return "none"
    return _scalar("report_to", "str", value)


def _checked(action: argparse.Action, value: str) -> Any:
    try:
        return action.type(value)  # type: ignore[misc, operator]
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ValueError(f"{action.dest}: {error}") from None


def _boolean(action: argparse.Action, value: Any) -> Any:
    switches = {"on": True, "off": False}
    if isinstance(value, str):
        return switches[value.lower()] if value.lower() in switches else _checked(action, value)
    if value in (0, 1):
        return bool(value)
    raise ValueError(f"{action.dest} must be true or false, got {value!r}")


def _choice(name: str, choices: list[str], value: Any) -> str:
    if "no" in choices and str(value).lower() in _NOTHING:
        return "no"
    if isinstance(value, bool) or str(value) not in choices:
        hint = _how_yaml_read(value) or did_you_mean(value, choices)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}{hint}")
    return str(value)


def _scalar(name: str, kind: str, value: Any) -> Any:
    if kind in ("int", "float"):
        return _number(name, kind, value)
    if isinstance(value, (dict, list)):
        return numbers_in(value)
    if kind == "str" and isinstance(value, bool):
        if name not in _TEXT_OR_BOOLEAN:
            raise ValueError(f"{name} must be a text, got {value!r}{_how_yaml_read(value)}")
    elif kind == "str":
        return str(value)  # a number, or a date
    return value


def _number(name: str, kind: str, value: Any) -> int | float:
    wanted = "a whole number" if kind == "int" else "a number"
    wrong = ValueError(f"{name} must be {wanted}, got {value!r}{_how_yaml_read(value)}")
    if isinstance(value, (bool, dict, list)):
        raise wrong
    try:
        number = float(value)
        if kind == "float":
            return number
        whole = int(number) if isinstance(value, float) or _EXPONENT.fullmatch(str(value)) else int(value)
    except (TypeError, ValueError, OverflowError):  # a date, a text, infinity
        raise wrong from None
    if whole != number:
        raise wrong
    return whole


def numbers_in(value: Any) -> Any:
    """Dictionaries and lists in which numbers that YAML left as texts, such as `1e-7`, are converted."""
    if isinstance(value, dict):
        return {key: numbers_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers_in(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


def _how_yaml_read(value: Any) -> str:
    if not isinstance(value, bool):
        return ""
    return " (to YAML, yes, no, on and off are true and false: write a text in quotes)"

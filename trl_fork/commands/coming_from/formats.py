"""Which tool a file is for, and the file as a recipe."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ...data.yaml_values import numbers_in
from .fates import Conversion, with_defaults
from .hydra import flatten, override_value
from .shell import read_overrides
from .trl_keys import OPEN_R1_KEYS, REWARD_FUNCTIONS, REWARDS
from .trl_recipe import convert_trl
from .verl import convert_verl


FORMATS = ("trl", "open_r1", "verl")
# The branches by which a configuration of verl is known.
_BRANCHES_OF_VERL = ("actor_rollout_ref", "algorithm", "critic", "trainer")


def convert(
    path: str, options: Collection[str], defaults: Mapping[str, Any], *, kind: str | None, processes: int | None
) -> Conversion:
    """
    Make a recipe of another tool's file.

    Args:
        path (`str`): The file.
        options (`Collection`): Names of the options of `trl-fork train`.
        defaults (`Mapping`): Their defaults.
        kind (`str`, *optional*): One of `FORMATS`; recognised if not given.
        processes (`int`, *optional*): Number of processes of the training.

    Raises:
        `ValueError`: if the file cannot be read, is of no known kind, or has batches that do not divide.
    """
    values, found = read(path)
    kind = kind or found
    if kind is None:
        raise ValueError(
            f"{path!r} is not recognised: neither a file of options of trl grpo or Open-R1, nor a configuration of "
            "verl (actor_rollout_ref, algorithm, trainer), nor a script with such overrides. If it is one, say which "
            "with --from_format"
        )
    if kind == "verl":
        conversion = convert_verl(values, processes)
    else:
        if found == "verl":
            raise ValueError(f"{path!r} has the dotted keys of verl, which are no options of {kind}")
        conversion = convert_trl(values, options, processes, open_r1=kind == "open_r1")
    conversion.fates = with_defaults(conversion.fates, defaults)
    return conversion


def read(path: str) -> tuple[dict[str, Any], str | None]:
    """The values of a file by key, and the kind of file that it seems to be."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path!r} (looked from {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from None
    if Path(path).suffix not in (".yaml", ".yml", ".json"):
        overrides = read_overrides(text)
        if overrides:
            return {key: override_value(value) for key, value in overrides.items()}, _kind_of_dotted(overrides)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path!r} is no YAML, nor a script with overrides such as a.b=1: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path!r} has no keys with values")
    if any(isinstance(content.get(name), dict) for name in _BRANCHES_OF_VERL):
        return flatten(content), "verl"
    if any("." in key for key in content):
        return {key: numbers_in(value) for key, value in content.items()}, _kind_of_dotted(content)
    return {key: numbers_in(value) for key, value in content.items()}, _kind_of_flat(content)


def _kind_of_dotted(keys: Mapping[str, Any]) -> str | None:
    return "verl" if any(key.partition(".")[0] in _BRANCHES_OF_VERL for key in keys) else None


def _kind_of_flat(content: Mapping[str, Any]) -> str | None:
    names = content.get("reward_funcs") or []
    of_open_r1 = {*REWARDS, *REWARD_FUNCTIONS} - {"soft_overlong_punishment"}
    if any(key in OPEN_R1_KEYS for key in content) or (isinstance(names, list) and of_open_r1 & {*map(str, names)}):
        return "open_r1"
    return "trl" if {"model_name_or_path", "output_dir", "num_generations", "learning_rate"} & set(content) else None

"""Teams from YAML files, and from lists of mappings."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from .._shipped import find_shipped, shipped_files
from .roles import Role
from .rollouts import TeamRollout


def load_team(team: str | Path | list, rounds: int = 1) -> TeamRollout:
    """
    Load a team.

    Args:
        team (`str`, `Path` or `list`):
            Name of a team that comes with the package, a YAML file with a list of roles under the key `team`, or that
            list: mappings of the arguments of [`Role`].
        rounds (`int`, *optional*, defaults to `1`):
            How often each role speaks.

    Raises:
        `ValueError`: naming the key, what is wrong with it and the remedy.
    """
    if isinstance(team, (str, Path)):
        path = _find(str(team))
        where = f"team: {path}"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{where} is no YAML: {error}") from error
        if not isinstance(content, Mapping) or "team" not in content:
            keys = f"has the keys {list(content)}" if isinstance(content, Mapping) else f"holds {content!r}"
            raise ValueError(f"{where} needs a key 'team' with the list of roles; it {keys}.")
        if others := [key for key in content if key != "team"]:
            raise ValueError(
                f"{where} has the keys {others} beside 'team', which is all that a file of a team holds. Take them "
                "out; the number of rounds is --team_rounds of `trl-fork train`, or the argument rounds of load_team."
            )
        roles = content["team"]
    else:
        where, roles = "team", team
    if not isinstance(roles, list) or not roles:
        raise ValueError(f"{where}: 'team' must be a list of roles, got {roles!r}. Write '- name: ...' for each role.")
    made = [_role(where, number, role) for number, role in enumerate(roles)]
    try:
        return TeamRollout(made, rounds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _find(team: str) -> Path:
    if Path(team).is_file():
        return Path(team)
    if team.endswith((".yaml", ".yml")) and team.removesuffix(".yaml") not in shipped_files("teams"):
        raise ValueError(
            f"team: there is no file {team!r} (looked from {Path.cwd()}). Name a file, or one of the teams "
            f"{list(shipped_files('teams'))}."
        )
    try:
        return find_shipped("teams", team)
    except ValueError as error:
        raise ValueError(f"team: {error} A file of your own is named with its ending, .yaml.") from None


def _role(where: str, number: int, given: Any) -> Role:
    place = f"{where}: role {number}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} must be a mapping with the keys name and prompt, got {given!r}.")
    if "name" in given:
        place += f" ({given['name']})"
    allowed = [field.name for field in fields(Role)]
    for key in given:
        if key not in allowed:
            near = get_close_matches(str(key), allowed, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{place} has a key {key!r}, which is no argument of a role.{meant} There are: {allowed}."
            )
    for field in fields(Role):
        if field.default is MISSING and field.name not in given:
            raise ValueError(f"{place} needs a key {field.name!r}; it has {list(given)}.")
    try:
        return Role(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error

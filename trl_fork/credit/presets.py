"""Chains by name: one YAML file each, with the source of the method."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml


def presets_folder() -> Traversable:
    """The folder of the preset files: package data in a wheel, the top-level `configs/credit` in a checkout."""
    package = files(__package__.split(".")[0])
    folder = package / "configs" / "credit"
    return folder if folder.is_dir() else Path(str(package)).parent / "configs" / "credit"


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    folder = presets_folder()
    names = [file.name.removesuffix(".yaml") for file in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if "." not in name)


def load_preset(name: str) -> dict[str, Any]:
    """The chain `{rule: {parameter: value}}` of a preset, one of [`preset_names`]."""
    text = (presets_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["token_credit"]

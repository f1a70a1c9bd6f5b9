"""Chains by name: one YAML file each, with the source of the method."""

from typing import Any

import yaml

from .._shipped import shipped_files


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return list(shipped_files("credit"))


def load_preset(name: str) -> dict[str, Any]:
    """The chain `{rule: {parameter: value}}` of a preset, one of [`preset_names`]."""
    return yaml.safe_load(shipped_files("credit")[name].read_text(encoding="utf-8"))["token_credit"]

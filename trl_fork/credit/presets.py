"""Chains by name: one YAML file each, with the source of the method."""

from typing import Any

import yaml

from .._shipped import shipped_files


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return list(shipped_files("credit"))


def load_preset(name: str) -> dict[str, Any]:
    """The chain `{rule: {parameter: value}}` of a preset, one of [`preset_names`]."""
    return _content(name)["token_credit"]


def preset_instruction(name: str) -> str | None:
    """The `contrast_instruction` of a preset; `None` if it has none, or there is no preset of that name."""
    return _content(name).get("contrast_instruction") if name in preset_names() else None


def _content(name: str) -> dict[str, Any]:
    return yaml.safe_load(shipped_files("credit")[name].read_text(encoding="utf-8"))

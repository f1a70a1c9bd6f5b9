"""Nested files of Hydra as dotted keys, and the values of overrides."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ...data.yaml_values import numbers_in


# What Hydra and OmegaConf themselves read.
_OF_HYDRA = ("defaults", "hydra", "_target_")


def override_value(text: str) -> Any:
    """The value of `key=value`: a number, a list or a text."""
    try:
        return numbers_in(yaml.safe_load(text)) if text.strip() else None
    except yaml.YAMLError:
        return text


def flatten(nested: Mapping, beginning: str = "") -> dict[str, Any]:
    """The values of a nested file by dotted key. References such as `${data.seed}` are replaced where they can be."""
    values = dict(_leaves(nested, beginning))
    return {key: _resolve(key, value, values) for key, value in values.items()}


def _leaves(nested: Mapping, beginning: str) -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if str(name) in _OF_HYDRA:
            continue
        key = f"{beginning}{name}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, numbers_in(value)


def _resolve(key: str, value: Any, values: Mapping[str, Any], depth: int = 0) -> Any:
    """`${a.b}`, `${.b}` and `${oc.select:a.b,default}` as the value they mean."""
    match = re.fullmatch(r"\$\{(?:oc\.select:)?([\w.]+)(?:,\s*(.*))?\}", value) if isinstance(value, str) else None
    if not match or depth > 8:
        return value
    name, default = match.groups()
    if name.startswith("."):
        name = f"{key.rpartition('.')[0]}{name}"
    if name in values:
        return _resolve(name, values[name], values, depth + 1)
    return value if default is None else _resolve(key, override_value(default), values, depth + 1)

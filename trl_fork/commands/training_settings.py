"""The settings of a training as JSON beside its model, for `trl-fork report`."""

import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path

from .. import ForkingGRPOConfig
from .._files import write_json
from ..report.runs import SETTINGS
from ..trainer.model_card import PACKAGES, installed_versions


def save_settings(args: ForkingGRPOConfig, *others, num_processes: int) -> None:
    """
    Write `training_settings.json` into `output_dir`: every option with its value, the names of those that are not at
    their default, and versions. Tokens of the Hub are left out.

    Args:
        args ([`ForkingGRPOConfig`]): Configuration of the trainer.
        *others: Further dataclasses of options.
        num_processes (`int`): Processes of the run.
    """
    settings = {name: value for part in others for name, value in asdict(part).items()} | args.to_dict()
    settings = _without_secrets(json.loads(json.dumps(settings, default=str)))
    defaults = {}
    for field in (field for part in (*others, args) for field in fields(part)):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        defaults[field.name] = json.loads(json.dumps(default, default=str))
    changed = [
        name
        for name, value in settings.items()
        # Empty values and dictionaries stand for defaults that transformers has filled in.
        if name in defaults and value != defaults[name] and value not in (None, [], {}) and not isinstance(value, dict)
    ]
    assert args.output_dir  # transformers has set it
    write_json(
        Path(args.output_dir) / SETTINGS,
        {
            "settings": {**settings, "num_processes": num_processes},
            "changed": changed,
            "versions": installed_versions(PACKAGES),
        },
        ensure_ascii=False,
    )


def _without_secrets(value):
    if isinstance(value, dict):
        return {
            name: _without_secrets(item)
            for name, item in value.items()
            if not (name.lower() == "token" or name.lower().endswith(("_token", "api_key", "password")))
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value

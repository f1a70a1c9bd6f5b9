"""The settings of a training as JSON beside its model, for `trl-fork report`."""

import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from .. import ForkingGRPOConfig
from .._files import write_json
from .._logging import logger
from ..report.runs import SETTINGS, learned_differences, read_settings
from ..trainer.model_card import PACKAGES, installed_versions


# What the optimizer and the scheduler of a checkpoint bring with them: they are loaded over the new values.
_OF_THE_CHECKPOINT = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


def save_settings(
    args: ForkingGRPOConfig, *others, num_processes: int, resume_from_checkpoint: str | bool = False
) -> None:
    """
    Write `training_settings.json` into `output_dir`: every option with its value, the names of those that are not at
    their default, and versions. Tokens of the Hub are left out.

    A run that is continued with other settings than those of its file is warned of, and the file keeps the warning.

    Args:
        args ([`ForkingGRPOConfig`]): Configuration of the trainer.
        *others: Further dataclasses of options.
        num_processes (`int`): Processes of the run.
        resume_from_checkpoint (`str` or `bool`, *optional*, defaults to `False`):
            Result of [`~output_directory.checkpoint_choice`].
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
    settings["num_processes"] = num_processes
    resumed = []
    if resume_from_checkpoint:
        run = Path(args.output_dir if resume_from_checkpoint is True else resume_from_checkpoint)
        earlier = read_settings(run) or {}
        resumed = [*earlier.get("resumed", ()), *warn_of_changes(earlier.get("settings", {}), settings)]
    write_json(
        Path(args.output_dir) / SETTINGS,
        {
            "settings": settings,
            "changed": changed,
            "versions": installed_versions(PACKAGES),
            **({"resumed": resumed} if resumed else {}),
        },
        ensure_ascii=False,
    )


def warn_of_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """
    Warn of settings that change what a run learns in the middle of it.

    Args:
        before, after (`dict[str, Any]`): Settings of the run, and of its continuation.

    Returns:
        `list[str]`: the changes in one text, or nothing.
    """
    changes = learned_differences(before, after)
    if not changes:
        return []
    text = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in changes)
    if kept := [name for name, _ in changes if name in _OF_THE_CHECKPOINT]:
        text += f" (the optimizer of the checkpoint keeps its own {', '.join(kept)})"
    logger.warning(
        f"resume_from_checkpoint: this run goes on with other settings than it had: {text}. What it has learned at "
        "the end, and its report, will be of both. For a comparison start the other run in an output_dir of its own."
    )
    return [text]


def _without_secrets(value):
    if isinstance(value, dict):
        return {
            name: _without_secrets(item)
            for name, item in value.items()
            if not (name.lower() == "token" or name.lower().endswith(("_token", "api_key", "password")))
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value

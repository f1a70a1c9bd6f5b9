"""Reward functions by name, as they stand in a YAML file."""

import importlib
import os
import sys
from collections.abc import Callable

from trl.rewards import think_format_reward

from .grading import accuracy_reward, reasoning_accuracy_reward


REWARD_FUNCTIONS = {
    function.__name__: function for function in (accuracy_reward, reasoning_accuracy_reward, think_format_reward)
}


def get_reward_function(name: str) -> Callable:
    """
    A reward function by its name in TRL, or by the dotted path of a callable of your own.

    Args:
        name (`str`):
            One of `REWARD_FUNCTIONS`, or a path such as `my_rewards.exact_match`, looked up from the working directory
            too.

    Raises:
        `ValueError`: if there is no such function, naming those there are.
    """
    if name in REWARD_FUNCTIONS:
        return REWARD_FUNCTIONS[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(
            f"reward_funcs: unknown reward function {name!r}. Pass one of {sorted(REWARD_FUNCTIONS)}, or a dotted "
            "path such as 'my_rewards.exact_match'."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"reward_funcs: cannot import {name!r} (looked from {os.getcwd()} too): {error}.") from error

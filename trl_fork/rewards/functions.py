"""Reward functions by name, for YAML files and the command line."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps

from trl.rewards import get_soft_overlong_punishment, think_format_reward

from .._imports import import_module_of_user
from .forecasts import brier_reward
from .grading import accuracy_reward, reasoning_accuracy_reward


SOFT_OVERLONG_PUNISHMENT = "soft_overlong_punishment"


def reads_text(function: Callable) -> Callable:
    """Let a reward that reads messages score plain text too, on which TRL's rewards fail."""

    @wraps(function)
    def reward(completions, *args, **kwargs):
        completions = [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in completions]
        return function(completions, *args, **kwargs)

    return reward


# Names and meanings are TRL's where TRL has them. Those that use math-verify grade in processes that a hostile answer
# cannot stall.
REWARD_FUNCTIONS = {
    function.__name__: function
    for function in (accuracy_reward, reasoning_accuracy_reward, brier_reward, reads_text(think_format_reward))
}


def get_reward_function(
    name: str, *, max_completion_len: int | None = None, soft_punish_cache: int | None = None
) -> Callable:
    """
    Find a reward function by its name, TRL's where TRL has it, or by the dotted path of a callable of your own.

    Args:
        name (`str`):
            One of `REWARD_FUNCTIONS`, `soft_overlong_punishment` ([`~trl.rewards.get_soft_overlong_punishment`]), or a
            path such as `my_rewards.exact_match`, looked up from the working directory too.
        max_completion_len (`int`, *optional*):
            Length in tokens at which `soft_overlong_punishment` reaches -1.
        soft_punish_cache (`int`, *optional*):
            Number of tokens before it over which `soft_overlong_punishment` falls from 0. The authors' values are
            20,480 and 4,096.

    Raises:
        `ValueError`: if there is no such function, naming those that exist; if it is a class or not callable; or for
            lengths that make no slope.
    """
    if name == SOFT_OVERLONG_PUNISHMENT:
        if not soft_punish_cache or not max_completion_len or not 0 < soft_punish_cache <= max_completion_len:
            raise ValueError(
                f"reward_funcs: {name} falls from 0 to -1 over the last soft_punish_cache tokens before "
                f"max_completion_len, so that 0 < soft_punish_cache <= max_completion_len; got {soft_punish_cache} "
                f"and {max_completion_len}. The authors' values are 4096 and 20480."
            )
        return get_soft_overlong_punishment(max_completion_len, soft_punish_cache)
    if name in REWARD_FUNCTIONS:
        return REWARD_FUNCTIONS[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        names = sorted([*REWARD_FUNCTIONS, SOFT_OVERLONG_PUNISHMENT])
        # Open-R1 and others leave out `_reward`.
        meant = [known for known in names if name and name in known][:1] or get_close_matches(name, names, 1)
        raise ValueError(
            f"reward_funcs: unknown reward function {name!r}. Pass one of {names}, or a dotted path such as "
            f"'my_rewards.exact_match'.{f' Did you mean {meant[0]!r}?' if meant else ''}"
        )
    try:
        function = getattr(import_module_of_user(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"reward_funcs: cannot import {name!r} (looked from {os.getcwd()} too): {error}.") from error
    if not callable(function) or isinstance(function, type):
        what = "a class: name an instance of it, or a function" if isinstance(function, type) else "not callable"
        raise ValueError(f"reward_funcs: {name!r} is {what}.")
    return function

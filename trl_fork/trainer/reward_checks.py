"""Checks of a run's rewards: before the model is loaded, and of what they return."""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._errors import StatedError
from ..rewards.returned import RewardError, returned_rewards
from .out_of_memory import is_out_of_memory


def check_rewards(args, reward_funcs, *, environment: bool) -> None:
    """
    Check that there are rewards, as many as weights, and the one that dynamic sampling asks.

    Args:
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        reward_funcs: The argument `reward_funcs`.
        environment (`bool`): Whether an environment may reward, too.

    Raises:
        `ValueError`: naming the option, its value, the rule and the remedy.
    """
    if environment:
        return
    rewards = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    rewards = [reward for reward in rewards if reward is not None]
    if not rewards:
        raise ValueError("reward_funcs must name at least one reward, got none: there would be nothing to learn from.")
    if args.reward_weights is not None and len(args.reward_weights) != len(rewards):
        raise ValueError(
            f"reward_weights must be one for each of reward_funcs, got {len(args.reward_weights)} "
            f"({args.reward_weights}) for {len(rewards)}. Leave it out to weigh all alike."
        )
    names: list[Any] = [getattr(reward, "__name__", None) for reward in rewards]
    if None not in names:  # a reward model has its name once it is loaded
        deciding_column(args, names)


def deciding_column(args, names: list[str]) -> int | None:
    """
    Number of the reward whose spread makes a group informative in dynamic sampling; `None` for the weighted sum.

    Raises:
        `ValueError`: if no reward has the name.
    """
    wanted = args.dynamic_sampling_reward
    if not args.dynamic_sampling or wanted is None:
        return None
    if wanted not in names:
        raise ValueError(
            f"dynamic_sampling_reward names no reward function of this run: got {wanted!r}, there are {names}. Pass "
            "one of them, or leave it out for the weighted sum."
        )
    return names.index(wanted)


def checked_reward(function, name: str):
    """
    Wrap a reward so that an error of it, and what is not one number or `None` per completion, names it.

    Args:
        function: A reward function, synchronous or not; a reward model is left as it is.
        name (`str`): Its name in the log.

    Raises:
        [`~rewards.returned.RewardError`]: when it is called.
    """
    if isinstance(function, torch.nn.Module):
        return function
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None)):  # noqa: B004

        @functools.wraps(function)
        async def checked(**arguments):
            with _named(name):
                returned = await function(**arguments)
            return returned_rewards(name, returned, len(arguments["completions"]))

    else:

        @functools.wraps(function)
        def checked(**arguments):
            with _named(name):
                returned = function(**arguments)
            return returned_rewards(name, returned, len(arguments["completions"]))

    return checked


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, StatedError) or is_out_of_memory(error):  # both say more by themselves
            raise
        raise RewardError(f"The reward function {name!r} failed ({type(error).__name__}: {error}).") from error

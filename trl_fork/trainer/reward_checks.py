"""Checks of a run's rewards that TRL, or this package, could make only after the model is loaded."""

from typing import Any


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

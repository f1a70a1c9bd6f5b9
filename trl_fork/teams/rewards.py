"""Rewards of whole episodes."""

import functools
import inspect
from collections.abc import Callable

import torch

from ..rewards.returned import returned_rewards


def joint_reward(reward_func: Callable, role: str | None = None) -> Callable:
    """
    Make a reward function one of whole episodes of a team.

    It is asked once per episode, with the completion, the prompt and the columns of one turn, and all turns of the
    episode get its value. What it logs by `log_extra` stands beside all of them, too.

    Args:
        reward_func (`Callable`):
            A reward function as [`~trl.GRPOTrainer`] takes it, synchronous or not. Among its arguments are `role` and
            `turn` of the one row per episode that it is given, and `transcript`, all messages of the episode.
        role (`str`, *optional*):
            The role whose last turn is scored; by default the last turn of the episode is.

    Returns:
        `Callable`: a reward function with the attribute `is_joint`, which needs rollouts of a [`TeamRollout`].

    Raises:
        `TypeError`: for a reward model, which is no function.
        `ValueError`: for a reward that is joint already.

    Example:
        ```python
        from trl.rewards import accuracy_reward
        from trl_fork.teams import joint_reward

        reward_funcs = [joint_reward(accuracy_reward)]
        ```
    """
    if isinstance(reward_func, (str, torch.nn.Module)) or not callable(reward_func):
        found = repr(reward_func) if isinstance(reward_func, str) else type(reward_func).__name__
        raise TypeError(
            f"joint_reward takes a function, got {found}: a reward model scores the prompt of the data and a "
            "completion, which are not of the same role. Write a function that asks it about the completion of one "
            "role."
        )
    if getattr(reward_func, "is_joint", False):
        raise ValueError(f"joint_reward: {_title(reward_func)!r} is joint already. Pass the reward function itself.")

    if _is_async(reward_func):

        @functools.wraps(reward_func)
        async def joint(**arguments):
            rows = _Rows(arguments, role, _title(reward_func))
            return rows.spread(await reward_func(**rows.chosen()))

    else:

        @functools.wraps(reward_func)
        def joint(**arguments):
            rows = _Rows(arguments, role, _title(reward_func))
            return rows.spread(reward_func(**rows.chosen()))

    joint.__name__ = _title(reward_func)
    joint.is_joint, joint.role = True, role  # type: ignore[attr-defined]
    return joint


class _Rows:
    """The rows of a batch by episode, and the one of each that a reward function is asked about."""

    def __init__(self, arguments: dict, role: str | None, title: str):
        names = arguments.get("role")
        if not isinstance(names, list):
            raise ValueError(
                f"joint_reward: {title!r} was called without the column 'role', which the rollouts of a team add. "
                "Pass a TeamRollout as rollout_func, or the reward function itself to a run without a team."
            )
        self.arguments, self.title, self.count = arguments, title, len(names)
        starts = [row for row, turn in enumerate(_turns(names, arguments.get("turn"))) if turn == 0]
        self.lengths = [end - start for start, end in zip(starts, [*starts[1:], self.count], strict=True)]
        self.rows = []
        for start, length in zip(starts, self.lengths, strict=True):
            asked = [row for row in range(start, start + length) if role in (None, names[row])]
            if not asked:
                raise ValueError(
                    f"joint_reward: {title!r} asks the role {role!r}, and rows {start} to {start + length - 1} are of "
                    f"{names[start : start + length]}. Name one of these, or leave role out for the last turn."
                )
            self.rows.append(asked[-1])

    def chosen(self) -> dict:
        """The arguments of one row per episode."""
        arguments = {
            name: [values[row] for row in self.rows]
            if isinstance(values, list) and len(values) == self.count
            else values
            for name, values in self.arguments.items()
        }
        if log := self.arguments.get("log_extra"):
            arguments["log_extra"] = lambda column, values: log(
                column, self._repeated(values) if len(values) == len(self.rows) else values
            )
        return arguments

    def spread(self, values) -> list:
        """A value per row from one per episode."""
        return self._repeated(returned_rewards(self.title, values, len(self.rows), "episode"))

    def _repeated(self, values) -> list:
        return [value for value, length in zip(values, self.lengths, strict=True) for _ in range(length)]


def _turns(names: list[str], turns: list[int] | None) -> list[int]:
    """Number of each row in its episode; without it, an episode is one turn of each role."""
    if turns is not None:
        return turns
    period = next((row for row in range(1, len(names)) if names[row] == names[0]), len(names))
    return [row % period for row in range(len(names))]


def _title(reward_func) -> str:
    while isinstance(reward_func, functools.partial):
        reward_func = reward_func.func
    return getattr(reward_func, "__name__", type(reward_func).__name__)


def _is_async(reward_func) -> bool:
    return inspect.iscoroutinefunction(reward_func) or inspect.iscoroutinefunction(
        getattr(reward_func, "__call__", None)  # noqa: B004
    )

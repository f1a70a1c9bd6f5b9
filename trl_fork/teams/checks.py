"""Checks of a run of a team that fail before a model is loaded."""

import functools
from difflib import get_close_matches
from typing import Any

from datasets import Dataset

from ..data.columns import place
from .episodes import question_of
from .roles import Role


# What a rollout of a team adds to the rows of a data set.
RESERVED = ("role", "turn", "transcript", "role_beta")

BALANCE = "trajectory_balance"


def check_run(roles: tuple[Role, ...], args, reward_funcs, train_dataset, eval_dataset) -> None:
    """
    Check data, rewards and settings of a run against the roles of its team. The rows of streams are not read.

    Args:
        roles (`tuple[Role, ...]`): The roles.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        reward_funcs: The argument `reward_funcs` of the trainer.
        train_dataset, eval_dataset: The arguments of the trainer of these names.

    Raises:
        `ValueError`: naming the role, the field or the reward, its value, the rule and the remedy.
    """
    _check_rewards(roles, reward_funcs)
    _check_objective(roles, args)
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
        _check_dataset(roles, args, name, dataset)


def _check_rewards(roles: tuple[Role, ...], reward_funcs) -> None:
    names = [role.name for role in roles]
    for function in reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]:
        title = getattr(function, "__name__", None) or (function if isinstance(function, str) else type(function))
        while isinstance(function, functools.partial):
            function = function.func
        if function is not None and not getattr(function, "is_joint", False):
            raise ValueError(
                f"The reward function {title!r} is not joint: it would score the turns of different roles, and the "
                "advantage of a group would compare a role with another. Pass joint_reward(reward_func) of "
                "trl_fork.teams, which scores an episode and gives all of its turns that value."
            )
        if (asked := getattr(function, "role", None)) is not None and asked not in names:
            raise ValueError(
                f"joint_reward: {title!r} asks the role {asked!r}, and the team has no such role; it has {names}. "
                "Name one of these, or leave role out for the last turn."
            )


def _check_objective(roles: tuple[Role, ...], args) -> None:
    balance = getattr(args, "objective", None) == BALANCE
    for role in roles:
        if args.use_vllm and (role.temperature or 0) > 2:
            raise ValueError(
                f"Role {role.name!r}: temperature={role.temperature} must be at most 2 with use_vllm, which samples "
                "at no higher one. Lower it, or set use_vllm to false."
            )
        if role.beta is not None and not balance:
            raise ValueError(
                f"Role {role.name!r}: beta={role.beta} has no effect without objective='{BALANCE}', whose residual "
                "reads it. Leave it out, or set the objective."
            )
        if balance and role.temperature is not None and role.temperature != args.temperature:
            raise ValueError(
                f"Role {role.name!r}: temperature={role.temperature} does not go with objective='{BALANCE}': the "
                f"log-probabilities of the objective are taken at args.temperature={args.temperature}, and its log Z "
                "assumes completions sampled from them. Leave it out, or change args.temperature for all roles."
            )
    if balance and args.partition == "offline":
        raise ValueError(
            "partition='offline' does not go with a team: the estimates of the column log_partition are of the data "
            "set's prompts, and each role has a prompt of its own. Set partition='group'."
        )


def temperatures_off_policy(roles: tuple[Role, ...], args) -> dict[str, str]:
    """A warning for each role that samples at another temperature than the trainer's, by a name for it."""
    return {
        f"temperature of {role.name}": (
            f"Role {role.name!r}: temperature={role.temperature}, and the trainer takes log-probabilities at "
            f"args.temperature={args.temperature}: the role's completions are off policy, of another distribution "
            "than the one whose gradient is taken. Of the engines only vLLM gives the log-probabilities of its own "
            "samples, with which vllm_importance_sampling_correction corrects for it."
        )
        for role in roles
        if role.temperature is not None and role.temperature != args.temperature
    }


def refuse_system(role: Role, where: str) -> None:
    """Refuse the system message of a role where prompts are plain texts."""
    if role.system is not None:
        raise ValueError(
            f"Role {role.name!r}: system={role.system!r} needs prompts that are conversations, and the prompt is a "
            f"plain text ({where}). Write it into the role's prompt, or make the prompts conversations."
        )


def _check_dataset(roles: tuple[Role, ...], args, name: str, dataset: Any) -> None:
    columns = getattr(dataset, "column_names", None)
    if not columns or (isinstance(dataset, Dataset) and dataset.format["type"] == "custom"):
        return  # a stream of unknown columns, or a transform that may make any
    if taken := [column for column in columns if column in RESERVED]:
        raise ValueError(
            f"{name} has the columns {taken}, and the rollouts of a team add columns of the names {list(RESERVED)} "
            "for rewards. Rename or remove them."
        )
    for role in roles:
        for column, argument in role.columns.items():
            _check_column(f"Role {role.name!r}: {argument} has the field {{{column}}}", args, column, name, dataset)
    if isinstance(dataset, Dataset) and "prompt" in columns:
        for number, prompt in enumerate(dataset["prompt"]):
            if isinstance(prompt, str):  # true of all rows if of one
                for role in roles:
                    refuse_system(role, f"{name}: {place('prompt', number)}")
                return
            question_of(prompt, f"{name}: {place('prompt', number)}")


def _check_column(where: str, args, column: str, name: str, dataset: Any) -> None:
    columns = list(dataset.column_names)
    if column not in columns:
        near = get_close_matches(column, ["prompt", "transcript", *columns], 1)
        raise ValueError(
            f"{where}, and {name} has no such column; it has {columns}. Name one of these"
            f"{f' ({near[0]!r} is near)' if near else ''}, or double the braces, {{{{{column}}}}}, if it is a text."
        )
    if args.remove_unused_columns:
        raise ValueError(
            f"{where}, and remove_unused_columns would take this column out of {name}. Set remove_unused_columns to "
            "false."
        )
    if isinstance(dataset, Dataset) and dataset.data.column(column).null_count:
        for number, value in enumerate(dataset[column]):  # reads only this selection of the rows
            if value is None:
                raise ValueError(
                    f"{where}, and {name}: {place(column, number)} has no value. Leave such rows out: "
                    f"dataset.filter(lambda row: row[{column!r}] is not None)."
                )

"""What the trainer is given, checked before a model is loaded or completions are generated."""

import inspect

import torch
from trl import GRPOTrainer

from .._logging import logger
from ..credit import Chain, build_credit
from ..looped import find_looped
from ._trl import get_config_model_id
from .balance import check_balance
from .checks import check_processing_class, check_rollouts, check_training_data, refuse_frozen_model
from .contrast import check_contrast
from .credit_checks import check_credit, check_flags, check_windows
from .dynamic_sampling import check_dynamic_sampling
from .episodes import check_episodes
from .forking_grpo_config import ForkingGRPOConfig
from .loop_checks import check_loop_credit
from .looping import refuse_model_without_loops
from .objective_checks import check_objective
from .reward_checks import check_rewards


def checked_arguments(
    trainer: GRPOTrainer,
    model,
    reward_funcs,
    args: ForkingGRPOConfig | None,
    positional: tuple,
    keywords: dict,
    token_credit_func,
) -> tuple[inspect.BoundArguments, ForkingGRPOConfig, Chain | None, int]:
    """
    Arguments of [`~trainer.ForkingGRPOTrainer`] for TRL's trainer, after all checks that need no loaded model.

    Args:
        trainer ([`~trl.GRPOTrainer`]): The trainer, which is not initialised yet.
        model, reward_funcs, args: Its first arguments, as they were given.
        positional, keywords (`tuple`, `dict`): Its other arguments.
        token_credit_func (`Callable`, *optional*): A credit rule of the caller's own.

    Returns:
        `tuple`: the call of `GRPOTrainer.__init__`, the configuration, the credit rules (`None`: every token has
        weight 1), and the number of rows that a rollout function plays together.

    Raises:
        What [`~trainer.ForkingGRPOTrainer`] lists.
    """
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        args = ForkingGRPOConfig(f"{name.split('/')[-1]}-ForkingGRPO")
    elif not isinstance(args, ForkingGRPOConfig):
        raise TypeError(
            f"args must be a ForkingGRPOConfig, got {type(args).__name__}, which does not say which tokens to "
            "train on. Build a ForkingGRPOConfig with the same arguments."
        )
    chain = args.credit if token_credit_func is None else _chain_of(token_credit_func, args)
    call = inspect.signature(GRPOTrainer.__init__).bind(trainer, model, reward_funcs, args, *positional, **keywords)
    given = call.arguments
    rows_per_episode = check_episodes(args, given, chain)
    if given.get("rollout_func") is not None:
        given["rollout_func"] = check_rollouts(given["rollout_func"])
    check_training_data(
        given.get("train_dataset"),
        reward_funcs or [],
        args,
        prompt_is_optional=given.get("environment_factory") is not None,
        extra_fields=given.get("rollout_func") is not None,
        eval_dataset=given.get("eval_dataset"),
    )
    check_rewards(args, reward_funcs, environment=given.get("environment_factory") is not None)
    check_dynamic_sampling(
        args,
        given.get("train_dataset"),
        given.get("processing_class"),
        given.get("tools"),
        given.get("environment_factory"),
    )
    check_contrast(args, chain, given)
    check_balance(args, given)
    if given.get("processing_class") is not None:  # checked before a large model is loaded
        check_processing_class(given["processing_class"], given.get("train_dataset"), chain)
    if chain is not None and args.importance_sampling_level == "sequence":
        logger.warning(
            "importance_sampling_level='sequence': the ratio of a completion averages over all of its tokens, so "
            "that the gradient reaches them all. The selection only weights each completion by its number of "
            "selected tokens. Set importance_sampling_level='token' to train on the selected tokens alone."
        )
    if chain is not None and chain.needs_whole_completions and not args.mask_truncated_completions:
        logger.warning(
            "mask_truncated_completions=False: token_credit trains on the whole of a completion without a match "
            f"({chain.in_words}), and a completion that was cut off has none. Set mask_truncated_completions=True."
        )
    if isinstance(model, torch.nn.Module) and find_looped(model) is None:
        refuse_model_without_loops(args, model)
    if isinstance(model, torch.nn.Module) and given.get("peft_config") is None:  # no adapter will be added
        refuse_frozen_model(model)
    return call, args, chain, rows_per_episode


def _chain_of(token_credit_func, args: ForkingGRPOConfig) -> Chain:
    if args.token_credit is not None:
        raise ValueError(
            f"token_credit_func and token_credit={args.token_credit!r} both say which tokens are trained on: pass one "
            "of them."
        )
    check_flags(args, "token_credit_func", token_credit_func)
    chain = build_credit(token_credit_func)
    check_credit(args, chain)
    check_windows(args, chain)
    check_objective(args, chain)
    check_loop_credit(args, chain)
    return chain

"""Checks of the settings of an objective: what it reads, and what would change its meaning."""

from math import isfinite

from .._nearest import check_choice
from ..credit import Chain
from ..objectives import OBJECTIVES
from .sampling_checks import check_sampling


POLICY_GRADIENT = "policy_gradient"
OBJECTIVE_NAMES = (POLICY_GRADIENT, *OBJECTIVES)
PARTITIONS = ("group", "offline")
BALANCE_REWARDS = ("advantage", "reward")
# Fields that only trajectory balance reads.
BALANCE_FIELDS = ("partition", "length_normalized", "balance_reward", "max_importance_ratio", "mirror_step_size")


def check_objective(args, chain: Chain | None) -> None:
    """
    Refuse settings of an objective that cannot be right, and settings beside it that it does not read or that would
    change what it means.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.
        chain ([`~credit.Chain`], *optional*): Its credit rules; `None` where every token has weight 1.

    Raises:
        `ValueError`: naming the setting, its value, the rule and the remedy.
    """
    for name, allowed in (
        ("objective", OBJECTIVE_NAMES),
        ("partition", PARTITIONS),
        ("balance_reward", BALANCE_REWARDS),
    ):
        check_choice(name, getattr(args, name), allowed)
    if type(args.length_normalized) is not bool:
        raise ValueError(f"length_normalized must be True or False, got {args.length_normalized!r}.")
    ratio = args.max_importance_ratio
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio >= 1:
        raise ValueError(
            f"max_importance_ratio must be a number of at least 1, got {ratio!r}: it is the largest weight of a "
            "completion, and that of a completion by the current policy is 1. Leave it out for 10."
        )
    step = args.mirror_step_size
    if step is not None and (
        isinstance(step, bool) or not isinstance(step, (int, float)) or not (isfinite(step) and step > 0)
    ):
        raise ValueError(
            f"mirror_step_size must be a positive number, got {step!r}: it is the step size of mirror descent. Leave "
            "it out to train towards the fixed target."
        )
    if args.objective == POLICY_GRADIENT:
        _check_unread(args)
    else:
        _check_balance(args, chain)


def _check_unread(args) -> None:
    for name in BALANCE_FIELDS:
        default, value = getattr(type(args), name), getattr(args, name)
        if value != default:
            raise ValueError(
                f"{name}={value!r} has no effect with objective='policy_gradient', which does not read it. Leave it "
                "out, or set objective='trajectory_balance'."
            )


def _check_balance(args, chain: Chain | None) -> None:
    if not (isinstance(args.beta, (int, float)) and isfinite(args.beta) and args.beta > 0):
        raise ValueError(
            f"beta must be above 0 with objective='trajectory_balance', got {args.beta}: the target is the "
            "reference's distribution times exp(reward / beta). It is the KL coefficient, 1 over the beta of FlowRL, "
            "whose 15 is beta=0.0667."
        )
    if chain is not None and args.loss_denominator == "selected":
        raise ValueError(
            "loss_denominator='selected' is not defined for objective='trajectory_balance', which averages over "
            f"completions and not over tokens; the weights of tokens ({chain.in_words}) multiply gradients only. Set "
            "loss_denominator='all'."
        )
    for name, off, reason in (
        ("delta", None, "it clips a token's ratio, and this objective has max_importance_ratio for completions"),
        ("off_policy_mask_threshold", None, "it masks the policy gradient of a completion, which is not there"),
        ("entropy_coef", 0.0, "a bonus would move the target, whose entropy beta sets"),
        ("use_adaptive_entropy", False, "a bonus would move the target, whose entropy beta sets"),
        (
            "importance_sampling_level",
            "token",
            "it makes the ratio of a policy gradient, and that of this objective is of the whole completion already",
        ),
    ):
        if getattr(args, name) != off:
            raise ValueError(
                f"{name}={getattr(args, name)!r} does not go with objective='trajectory_balance': {reason}. Leave it "
                f"at its default, {off!r}."
            )
    check_sampling(args)
    if args.balance_reward == "reward" and args.multi_objective_aggregation == "normalize_then_sum":
        raise ValueError(
            "multi_objective_aggregation='normalize_then_sum' has no effect with balance_reward='reward': it is a way "
            "to make advantages, and the reward is the weighted sum of the functions' values. Set "
            "'sum_then_normalize', or, with partition='group', balance_reward='advantage'."
        )
    if args.partition == "offline":
        _check_offline(args)
    if args.mirror_step_size is not None:
        _check_mirror(args)


def _check_offline(args) -> None:
    if args.balance_reward != "reward":
        raise ValueError(
            f"balance_reward={args.balance_reward!r} does not go with partition='offline': an estimate that is made "
            "before training is of rewards, and knows neither mean nor standard deviation of a group. Set "
            "balance_reward='reward', or partition='group'."
        )
    if args.sync_ref_model:
        raise ValueError(
            "sync_ref_model=True does not go with partition='offline': the estimate is of the first reference, and "
            "the reference would move away from it. Set sync_ref_model=False, or partition='group'."
        )


def _check_mirror(args) -> None:
    step = f"mirror_step_size={args.mirror_step_size!r}"
    if args.length_normalized:
        raise ValueError(
            f"length_normalized=True does not go with {step}: divided by its length, a completion would have a step "
            "size and a temperature of its own, and an error of log Z, which then lengthens answers, would grow from "
            "step to step. Set length_normalized=False."
        )
    if args.partition == "offline":
        raise ValueError(
            f"partition='offline' does not go with {step}: the estimate is of the fixed reference, and that of a step "
            "moves with the policy. Set partition='group'."
        )
    if args.sync_ref_model:
        raise ValueError(
            f"sync_ref_model=True does not go with {step}: the reference model is the magnet, which holds the fixed "
            "point of the steps, and would move away with it. Set sync_ref_model=False: a mirror step has the policy "
            "that starts the batch in its reference already."
        )

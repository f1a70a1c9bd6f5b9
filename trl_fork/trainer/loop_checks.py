"""Checks of the settings of RLTT, which weights the loops of a looped language model."""

from math import isfinite

from ..credit import Chain
from ..credit.pools import is_at_loss_time
from ..looped.credit import EXIT, LOOP_CREDITS, PROGRESSIVE


def check_loop_credit(args, chain: Chain | None) -> None:
    """
    Refuse values of `loop_credit` and its power, and settings that would read the mixture of the loops as a policy.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.
        chain ([`~credit.Chain`], *optional*): Its credit rules; `None` where every token has weight 1.

    Raises:
        `ValueError`: naming the setting, its value, the rule and the remedy.
    """
    credit, power = args.loop_credit, args.loop_credit_power
    if credit is not None and credit not in LOOP_CREDITS:
        raise ValueError(f"loop_credit must be None or one of {list(LOOP_CREDITS)}, got {credit!r}.")
    if isinstance(power, bool) or not isinstance(power, (int, float)) or not isfinite(power) or power < 0:
        raise ValueError(
            f"loop_credit_power must be a number of at least 0, got {power!r}: the weight of loop t is "
            "t ** loop_credit_power. Leave it out for 1.0."
        )
    if power != type(args).loop_credit_power and credit != PROGRESSIVE:
        raise ValueError(
            f"loop_credit_power={power} has no effect with loop_credit={credit!r}, which does not read it. Leave it "
            "out, or set loop_credit='progressive'."
        )
    if credit is None:
        return
    at_loss_time = chain is not None and is_at_loss_time(args.entropy_threshold_scope)
    reads = [rule.name for rule in chain.rules if "log_probs" in rule.needs] if at_loss_time else []
    for name, conflicts, reason, remedy in (
        (
            "objective",
            args.objective != "policy_gradient",
            "its residual is of the distribution that was sampled from, that of the last loop",
            "Leave it out",
        ),
        (
            "beta",
            args.beta != 0,
            "RLTT takes the KL term of the last loop alone, and TRL would take it of the mixture of all loops",
            "Set it to 0.0",
        ),
        (
            "importance_sampling_level",
            args.importance_sampling_level != "token",
            "a ratio of a whole completion would be one of mixtures of loops",
            "Set it to 'token'",
        ),
        (
            "vllm_importance_sampling_correction",
            args.use_vllm and args.vllm_importance_sampling_correction,
            "it compares vLLM's probabilities, those of the last loop, with the mixture of all loops",
            "Set it to False",
        ),
        (
            "off_policy_mask_threshold",
            args.off_policy_mask_threshold is not None,
            "it compares probabilities of the policy that sampled with the mixture of all loops",
            "Leave it out",
        ),
        (
            "reuse_scoring_graph",
            args.reuse_scoring_graph,
            "the scoring pass is of the last loop, and the update reads all of them",
            "Leave it out",
        ),
        (
            "ddp_find_unused_parameters",
            bool(args.ddp_find_unused_parameters) and credit == EXIT,
            "the search begins at the outputs of the model, among which the gate's are not, so that DDP would take it "
            "for unused",
            "Leave it out, as all that is trained is used",
        ),
        (
            "entropy_threshold_scope",
            bool(reads),
            f"the credit rules {reads} would read the mixture of all loops in the place of the policy's "
            "log-probabilities",
            "Set it to 'batch' or 'sequence'",
        ),
    ):
        if conflicts:
            raise ValueError(
                f"{name}={getattr(args, name)!r} does not go with loop_credit={credit!r}: {reason}. {remedy}, or set "
                "loop_credit to None."
            )
    generate_every = (args.steps_per_generation or 1) * args.num_iterations
    if args.gradient_accumulation_steps % generate_every:
        raise ValueError(
            f"num_iterations={args.num_iterations} and steps_per_generation={args.steps_per_generation} make several "
            f"updates of a generation batch (gradient_accumulation_steps={args.gradient_accumulation_steps}), which "
            f"does not go with loop_credit={credit!r}: TRL's ratio would compare the mixture of all loops with the "
            "last loop. Set num_iterations=1 and steps_per_generation to gradient_accumulation_steps, or set "
            "loop_credit to None."
        )

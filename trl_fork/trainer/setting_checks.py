"""Checks of the settings of a run against each other, before anything is loaded. All raise a `ValueError`."""

from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available


def check_passes(args) -> None:
    """Refuse a limit of tokens that is none, or that nothing reads."""
    limit = args.max_tokens_per_forward
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(
            f"max_tokens_per_forward must be a whole number of at least 1, got {limit!r}: it is the number of "
            "tokens of a forward pass. Leave it out for what a padded micro-batch would hold."
        )
    if limit is not None and not (args.padding_free and args.skip_inert_compute):
        off = "padding_free" if args.skip_inert_compute else "skip_inert_compute"
        raise ValueError(
            f"max_tokens_per_forward={limit} has no effect with {off}=False: only rows without padding are packed "
            f"to a number of tokens. Leave it out, or set {off}=True."
        )


def check_dynamic_sampling_settings(args) -> None:
    """Refuse settings of dynamic sampling under which advantages would depend on what was dropped."""
    if args.dynamic_sampling_max_rounds < 1:
        raise ValueError(
            f"dynamic_sampling_max_rounds must be at least 1, got {args.dynamic_sampling_max_rounds}: the first "
            "round generates the batch itself."
        )
    if args.dynamic_sampling and args.scale_rewards == "batch":
        raise ValueError(
            "scale_rewards='batch' does not go with dynamic_sampling=True: the standard deviation of the batch "
            "would be that of the groups that were kept, so that advantages depend on what was dropped. Set "
            "scale_rewards to 'group' (as the paper) or 'none'."
        )
    if args.dynamic_sampling and args.multi_objective_aggregation == "normalize_then_sum":
        raise ValueError(
            "multi_objective_aggregation='normalize_then_sum' does not go with dynamic_sampling=True: it "
            "standardises advantages over the batch, so that they depend on what was dropped. Set "
            "'sum_then_normalize'."
        )


def check_scoring_graph(args) -> None:
    """Refuse several updates of a batch beside a graph that is there for one. The trainer checks the rest."""
    several = args.num_iterations > 1 or args.steps_per_generation > args.gradient_accumulation_steps
    if args.reuse_scoring_graph and several:
        raise ValueError(
            f"reuse_scoring_graph=True: num_iterations={args.num_iterations} and steps_per_generation="
            f"{args.steps_per_generation} with gradient_accumulation_steps={args.gradient_accumulation_steps} make "
            "several updates per batch, and TRL scores the old log-probabilities of such a run by itself. Set "
            "num_iterations=1 and steps_per_generation at most gradient_accumulation_steps."
        )


def check_precision(args) -> None:
    """Refuse bf16 where nothing computes in it."""
    # transformers checks this too, but its message names neither the option nor TRL's default of bf16.
    bf16 = args.bf16 if args.bf16 is not None else not args.fp16
    if bf16 and not (args.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()):
        raise ValueError(
            "bf16, the default, needs a GPU that computes in it, and there is none here. To train on the CPU set "
            "use_cpu to true and bf16 to false (--use_cpu true --bf16 false); on an older GPU, bf16 to false."
        )

"""Checks of the settings that say which tokens are trained on, and with what weight. All raise a `ValueError`."""

from .._nearest import check_choice
from ..credit import POOLS, TOKEN_SELECTIONS, Chain
from ..credit.pools import is_at_loss_time
from .objective_checks import POLICY_GRADIENT


# Losses whose denominator counts tokens, so that it can count the selected ones instead. The others divide by the
# tokens of each sequence (grpo, sapo), by a constant (dr_grpo) or by sequences (luspo).
TOKEN_COUNT_LOSSES = ("bnpo", "cispo", "dapo", "vespo")
LOSS_DENOMINATORS = ("selected", "all")


def check_selection(args) -> None:
    """Refuse flags of the selection that are out of range, or that do not go together."""
    rho = args.top_entropy_quantile
    if not isinstance(rho, (int, float)) or not 0 < rho <= 1:
        raise ValueError(
            f"top_entropy_quantile must be in (0, 1], got {rho!r}: it is the fraction of tokens in the forking "
            "set. Pass 0.2 for the paper's top 20 %, 1.0 for all tokens."
        )
    for name, allowed in (
        ("token_selection", TOKEN_SELECTIONS),
        ("entropy_threshold_scope", POOLS),
        ("loss_denominator", LOSS_DENOMINATORS),
    ):
        check_choice(name, getattr(args, name), allowed)
    if args.token_credit is not None:
        check_flags(args, "token_credit", args.token_credit)
    if args.token_selection == "low_entropy" and rho == 1.0:
        raise ValueError(
            "token_selection='low_entropy' with top_entropy_quantile=1.0 selects no token: it is the complement "
            "of the top 100 %. Lower top_entropy_quantile (the paper's bottom 80 % is 0.2), or select "
            "'high_entropy' to train on all tokens."
        )


def check_flags(args, name: str, value) -> None:
    """
    Refuse credit rules beside flags that say something else.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.
        name (`str`): The option or argument that gives the rules.
        value: What it was given.

    Raises:
        `ValueError`: for a `top_entropy_quantile` other than its default and 1.0, or another `token_selection`
            than its default.
    """
    rho = args.top_entropy_quantile
    if rho not in (type(args).top_entropy_quantile, 1.0) or args.token_selection != type(args).token_selection:
        raise ValueError(
            f"{name}={value!r} says which tokens are trained on, and so do top_entropy_quantile={rho} and "
            f"token_selection={args.token_selection!r}: leave these two out, or write them as the rule "
            "{'top_fraction': {'fraction': ..., 'complement': ...}} or {'random': {'fraction': ...}}."
        )


def check_credit(args, chain: Chain | None) -> None:
    """
    Refuse credit rules that do not go with the other settings.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.
        chain ([`~credit.Chain`], *optional*): The rules; `None` where every token has weight 1.

    Raises:
        `ValueError`: naming the setting, its value, the rule and the remedy.
    """
    if chain is not None:
        _check_rules(args, chain)
    if chain is not None and args.loss_denominator == "selected" and args.loss_type not in TOKEN_COUNT_LOSSES:
        raise ValueError(
            f"loss_denominator='selected' is not defined for loss_type={args.loss_type!r}, which does not divide "
            f"by a number of tokens of the batch. Set loss_denominator='all' (TRL's own denominator), or one of "
            f"the losses that count tokens: {list(TOKEN_COUNT_LOSSES)}."
        )
    # `epsilon_high=None` without a selection is plain GRPOTrainer, which is left alone.
    read = args.objective == POLICY_GRADIENT
    if read and args.loss_type == "cispo" and (args.epsilon_high is not None or chain is not None):
        bound = args.epsilon if args.epsilon_high is None else args.epsilon_high
        if bound < 1:
            raise ValueError(
                f"epsilon_high must be at least 1 with loss_type='cispo', got {bound}: CISPO clamps the "
                "importance ratio itself at epsilon_high, so that a value below 1 scales down every on-policy "
                "token. The default of 0.28 is meant for the clipped losses; set epsilon_high=5.0 (ScaleRL's "
                "value)."
            )


def check_contrast_instruction(args, chain: Chain | None) -> None:
    """
    Refuse an instruction for negative prompts that is empty, or that no credit rule reads.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.
        chain ([`~credit.Chain`], *optional*): The rules.

    Raises:
        `ValueError`: naming the instruction, the rules and the remedy.
    """
    instruction = args.contrast_instruction
    if instruction is None:
        return
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(
            f"contrast_instruction must be a text, such as 'Note: Intentionally generate an incorrect answer.', "
            f"got {instruction!r}. Leave it out where no negative prompt is needed."
        )
    if chain is None or "contrast_log_probs" not in chain.needs:
        rules = "all tokens have one weight" if chain is None else f"the credit rules are {chain.describe()}"
        raise ValueError(
            f"contrast_instruction={instruction!r} is set, but nothing reads the log-probabilities after a "
            f"negative prompt: {rules}. Leave it out, or set token_credit to a rule that needs "
            "contrast_log_probs, such as the preset 'gcpo'."
        )


def check_windows(args, chain: Chain | None) -> None:
    """Refuse a selection whose optimizer steps mix parts of generation batches."""
    accumulation, steps = args.gradient_accumulation_steps, args.steps_per_generation or 1
    if chain is not None and steps % accumulation and accumulation % steps:
        raise ValueError(
            f"steps_per_generation ({steps}) must be a multiple or a divisor of gradient_accumulation_steps "
            f"({accumulation}): otherwise an optimizer step mixes parts of generation batches, and no token count "
            "of a batch is the count of a step."
        )


def _check_rules(args, chain: Chain) -> None:
    """Refuse credit rules that do not go with the settings of the loss, of pools and of the run's length."""
    chain.check_pool(args.entropy_threshold_scope)
    at_loss_time = is_at_loss_time(args.entropy_threshold_scope)
    if at_loss_time and (names := [rule.name for rule in chain.rules if "contrast_log_probs" in rule.needs]):
        raise ValueError(
            f"entropy_threshold_scope={args.entropy_threshold_scope!r} does not go with the credit rules {names}: "
            "their log-probabilities after a negative prompt are of the policy that starts the generation batch, "
            "and that scope takes those of the current policy. Set entropy_threshold_scope to 'batch' or "
            "'sequence'."
        )
    if chain.scheduled and args.max_steps <= 0:
        raise ValueError(
            f"max_steps must be set with a schedule of token_credit, got {args.max_steps}: the weights depend on "
            "global_step / max_steps, and a number of epochs would make them depend on the size of the data set. "
            f"Set max_steps, or take a constant in the rules {chain.describe()}."
        )
    uncounted = [rule.name for rule in chain.rules if not rule.counted]
    if uncounted and args.loss_type == "bnpo" and args.loss_denominator == "selected":
        raise ValueError(
            f"loss_type='bnpo' does not go with loss_denominator='selected' and the credit rules {uncounted}, "
            "which the denominator does not count: a micro-batch's loss is divided by its weights. Set "
            "loss_type='dapo', or loss_denominator='all'."
        )
    if chain.selects:
        return
    for name, value, conflicts in (
        ("entropy_coef", args.entropy_coef, args.entropy_coef != 0.0),
        ("use_adaptive_entropy", args.use_adaptive_entropy, args.use_adaptive_entropy),
        ("importance_sampling_level", args.importance_sampling_level, args.importance_sampling_level != "token"),
    ):
        if conflicts:
            raise ValueError(
                f"{name}={value!r} does not go with credit rules {chain.describe()}, whose weights differ from "
                "token to token: TRL would weight the entropy bonus by them too, and a ratio of a whole "
                "completion reaches every token. Leave it at its default, or take a rule that selects tokens."
            )

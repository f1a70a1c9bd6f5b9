"""
Work that can be left out of a run without changing its gradient.

A token outside the selection, a completion without advantage and a padding position are multiplied by zero somewhere
in TRL's loss. A value that is multiplied by zero and read nowhere else need not be computed.
"""

from dataclasses import dataclass, field

import torch

from .batching import cut_padding
from .token_credit import TokenCredit


# This reason is not logged: the run trains on all tokens and keeps TRL's metrics of all tokens.
ALL_TOKENS = "all tokens are trained on, and TRL's metrics are of all of them"

# Sums over tokens, divided by a count of the generation batch, do not depend on how micro-batches are cut; nor does
# trajectory balance, a sum over completions.
_BATCH_COUNT_LOSSES = ("cispo", "dapo", "vespo")


@dataclass(frozen=True)
class Savings:
    """
    Savings that are on.

    Args:
        padding (`bool`): Padding beyond the longest row of a micro-batch, in every forward pass.
        packing (`bool`): There is no padding in a forward pass at all: its rows stand one after the other.
        ordering (`bool`): Rows of an optimizer step are distributed by length over its micro-batches, so that there is
            less padding; with `packing` over fewer forward passes, and over the processes.
        inert_rows (`bool`): Completions without gradient are left out of the training pass.
        head_backward (`bool`): The LM head's backward visits only rows with a gradient.
        head_forward (`bool`): Its forward, too, visits only selected tokens.
        reasons (`dict[str, str]`): Why a saving is off.
    """

    padding: bool = False
    packing: bool = False
    ordering: bool = False
    inert_rows: bool = False
    head_backward: bool = False
    head_forward: bool = False
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def partial_forward(self) -> bool:
        """Whether the training pass, and so its averages, covers fewer tokens than are valid."""
        return self.inert_rows or self.head_forward


def plan_savings(
    args,
    credit: TokenCredit | None,
    *,
    length_shows: bool,
    image_inputs: bool,
    auxiliary_loss: bool,
    obstacle_to_packing: str | None = None,
) -> Savings:
    """
    The savings that are exact for a configuration.

    Args:
        args ([`ForkingGRPOConfig`]): The configuration.
        credit ([`~trainer.token_credit.TokenCredit`], *optional*): Credit of tokens; `None` where all have weight 1.
        length_shows (`bool`): Whether a longer row in the batch changes a row's scores, see [`padding_effect`].
        image_inputs (`bool`): Whether batches hold tensors that are not one row per completion.
        auxiliary_loss (`bool`): Whether a mixture-of-experts loss is added, which every token reaches.
        obstacle_to_packing (`str`, *optional*):
            Why rows cannot be packed, see [`~trainer.packed_attention.find_obstacle`].
    """
    if not args.skip_inert_compute:
        return Savings()
    reasons = {}

    def allowed(saving: str, *obstacles: tuple[bool, str]) -> bool:
        for is_met, reason in obstacles:
            if is_met:
                reasons[saving] = reason
                return False
        return True

    window = min(args.gradient_accumulation_steps, args.steps_per_generation)
    at_loss_time = credit is not None and credit.at_loss_time
    balance = args.objective == "trajectory_balance"
    bonus = args.entropy_coef != 0.0 or args.use_adaptive_entropy
    padding = allowed(
        "padding",
        (image_inputs, "image inputs are not cut with their rows"),
        (args.pad_to_multiple_of is not None, "pad_to_multiple_of asks for padding"),
        (length_shows, "the model's scores of a row depend on the padded length"),
    )
    packing = (
        padding
        and args.padding_free
        and allowed(
            "packing",
            (obstacle_to_packing is not None, str(obstacle_to_packing)),
            (args.torch_compile, "torch.compile would compile the model for every number of rows"),
            (auxiliary_loss, "the auxiliary loss averages over the tokens of a mask"),
        )
    )
    ordering = allowed(
        "ordering",
        (not padding, reasons.get("padding", "")),
        (
            at_loss_time,
            f"entropy_threshold_scope='{args.entropy_threshold_scope}' pools the rows of a micro-batch",
        ),
        (args.steps_per_generation % window != 0, "an optimizer step spans parts of generation batches"),
        (
            not (balance or args.loss_type in _BATCH_COUNT_LOSSES),
            f"loss_type='{args.loss_type}' averages over each micro-batch",
        ),
        (bonus, "the entropy bonus averages over each micro-batch"),
        (auxiliary_loss, "the auxiliary loss averages over each micro-batch"),
    )
    inert = allowed(
        "inert_rows",
        (not ordering, reasons.get("ordering", "")),
        (balance, "trajectory balance has a gradient without an advantage"),
        (args.beta != 0.0, "the KL term (beta) reaches every token"),
        (credit is None, ALL_TOKENS),
    )
    head_forward = allowed(
        "head_forward",
        (image_inputs, "image inputs are not supported"),
        (balance, "the residual of trajectory balance reads every token"),
        (args.beta != 0.0, "the KL term (beta) reaches every token"),
        (bonus, "the entropy bonus is not logged over selected tokens alone"),
        (args.importance_sampling_level != "token", "a sequence-level ratio reads every token"),
        (args.off_policy_mask_threshold is not None, "off_policy_mask_threshold reads every token"),
        (args.loss_type == "vespo", "loss_type='vespo' reads every token"),
        (at_loss_time, f"entropy_threshold_scope='{args.entropy_threshold_scope}' selects after the forward pass"),
        (credit is None, ALL_TOKENS),
        (credit is not None and not credit.chain.sparse, "the credit rules give weight to every token"),
    )
    return Savings(
        padding=padding,
        packing=packing,
        ordering=ordering,
        inert_rows=inert,
        head_backward=True,
        head_forward=head_forward,
        reasons=reasons,
    )


def padding_effect(score, prompt: list[int], completion: list[int], width: int, pad_token_id: int, device) -> float:
    """
    Effect of padding: the difference between a row's scores as it is and padded on the right.

    Args:
        score (`Callable`):
            `score(input_ids, attention_mask, completion_length)`, log-probabilities of shape `(1, completion_length)`.
        prompt, completion (`list[int]`):
            Token ids of the row.
        width (`int`):
            Number of columns after padding.
        pad_token_id (`int`):
            Token id of the padding.
        device (`torch.device`):
            Device of the batch.

    Returns:
        `float`: mean absolute difference of the log-probabilities, in nats; rounding alone if padding has no effect.
    """
    row = torch.tensor([prompt + completion], device=device)
    length = row.shape[1]
    alone = score(row, torch.ones_like(row), len(completion))
    padding = (0, max(width - length, 0))
    ids = torch.nn.functional.pad(row, padding, value=pad_token_id)
    mask = torch.nn.functional.pad(torch.ones_like(row), padding)
    padded = score(ids, mask, ids.shape[1] - len(prompt))[:, : len(completion)]
    return (alone.float() - padded.float()).abs().mean().item()


def rounding(model: torch.nn.Module, *dtypes: torch.dtype) -> float:
    """
    Largest difference of log-probabilities, in nats, taken for rounding: the square root of the coarsest precision.

    This is 3e-4 in float32, where rounding makes 1e-6, and 0.09 in bfloat16, where it makes 0.01.
    """
    found = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    # Floats of 8 and 4 bits are formats of storage; the computation uses a longer one.
    return max(torch.finfo(dtype).eps for dtype in (*dtypes, *found) if dtype.itemsize > 1) ** 0.5


def score_by_length(score, input_ids, attention_mask, completion_length: int, chunks: list[torch.Tensor]):
    """
    Score rows in chunks, each cut to its own longest prompt and completion.

    Args:
        score (`Callable`):
            `score(input_ids, attention_mask, completion_length)`, the scoring of one chunk: two tensors of shape
            `(chunk, completion_length)`, or `None` for the second.
        input_ids, attention_mask (`torch.Tensor` of shape `(batch, seq)`):
            Prompts padded on the left, completions on the right.
        completion_length (`int`):
            Positions at the end that are completion.
        chunks (`list[torch.Tensor]`):
            Numbers of the rows of each chunk, which are all rows together.

    Returns:
        `tuple`: log-probabilities and entropies of shape `(batch, completion_length)`, 0 at padding.
    """
    results: list = [None, None]
    prompt_length = input_ids.shape[1] - completion_length
    for rows in chunks:
        chunk = cut_padding(
            {
                "prompt_ids": input_ids[rows, :prompt_length],
                "prompt_mask": attention_mask[rows, :prompt_length],
                "completion_ids": input_ids[rows, prompt_length:],
                "completion_mask": attention_mask[rows, prompt_length:],
            }
        )
        length = chunk["completion_ids"].shape[1]
        scores = score(
            torch.cat([chunk["prompt_ids"], chunk["completion_ids"]], dim=1),
            torch.cat([chunk["prompt_mask"], chunk["completion_mask"]], dim=1),
            length,
        )
        for i, values in enumerate(scores):
            if values is not None:
                if results[i] is None:
                    results[i] = values.new_zeros(len(input_ids), completion_length)
                results[i][rows, :length] = values
    return tuple(results)

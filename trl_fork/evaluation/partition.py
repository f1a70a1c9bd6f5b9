"""Partition functions of prompts from graded samples: estimates, how good they are, and what is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..objectives.trajectory_balance import (
    effective_sample_size,
    fit_log_partition,
    proposal_log_partition,
    proposal_standard_error,
    ridge_map,
)


# Below it, one sample has most of the weight.
SMALL_SAMPLE_SIZE = 2.0

DEFINITIONS = {
    "num_rows": "Rows of the data file.",
    "num_prompts": "Different pairs of prompt and answer among them, each of which was sampled once.",
    "num_samples": "Samples of each, K.",
    "mean_pass_rate": (
        "Mean over prompts of the pass rate: the mean reward of its samples, with a proposal model weighted by "
        "pi_ref / q and divided by the sum of the weights."
    ),
    "num_prompts_without_right_sample": (
        "Prompts whose samples are all wrong. Their estimate is that of reward 0 everywhere, and a standard error of "
        "0 says nothing of answers that were not sampled."
    ),
    "mean_log_partition": "Mean over prompts of the column log_partition, in nats.",
    "median_effective_sample_size": "Median over prompts of (sum w)^2 / sum w^2, with w = pi_ref / q; K without q.",
    "fraction_small_effective_sample_size": f"Fraction of prompts where it is below {SMALL_SAMPLE_SIZE:g}.",
    "median_standard_error": (
        "Median over prompts of the standard error of the estimate by the delta method, in nats; none for K = 1."
    ),
    "mean_length": "Mean number of tokens of the samples, the end token included.",
    "truncated_fraction": "Fraction of the samples that reached --max_new_tokens; they count with their prefix.",
    "grading_failures": "Samples that count as wrong because they could not be graded.",
    "leave_one_out_r2": (
        "With --ridge: 1 - sum of squared errors / sum of squared distances from the mean, where prediction and mean "
        "of each prompt come from all others."
    ),
}


@dataclass(frozen=True)
class PartitionEstimate:
    """
    What the samples of each prompt say of its partition function. All are float64 of shape `(num_prompts,)`.

    Args:
        log_partition (`torch.Tensor`): `log Z`, or the constant of a length-normalised loss, in nats.
        standard_error (`torch.Tensor`): Its standard error; NaN for a single sample.
        effective_sample_size (`torch.Tensor`): Of the importance weights, between 1 and the number of samples.
        pass_rate (`torch.Tensor`): Self-normalised estimate of the mean reward of the reference.
    """

    log_partition: torch.Tensor
    standard_error: torch.Tensor
    effective_sample_size: torch.Tensor
    pass_rate: torch.Tensor


def estimate_partition(
    ref_log_probs: torch.Tensor,
    proposal_log_probs: torch.Tensor,
    rewards: torch.Tensor,
    beta: float,
    lengths: torch.Tensor | None = None,
) -> PartitionEstimate:
    """
    Estimate from samples of shape `(num_prompts, num_samples)`.

    Args:
        ref_log_probs, proposal_log_probs, rewards, beta, lengths:
            Arguments of [`~objectives.trajectory_balance.proposal_log_partition`].
    """
    arguments = (ref_log_probs, proposal_log_probs, rewards, beta, lengths)
    log_weights = ref_log_probs.double() - proposal_log_probs.double()
    return PartitionEstimate(
        log_partition=proposal_log_partition(*arguments),
        standard_error=proposal_standard_error(*arguments),
        effective_sample_size=effective_sample_size(log_weights),
        pass_rate=(log_weights.softmax(-1) * rewards.double()).sum(-1),
    )


def ridge_predictions(states: torch.Tensor, values: torch.Tensor, ridge: float) -> tuple[torch.Tensor, float | None]:
    """
    Predict each prompt's value from its state, by a ridge regression on all prompts.

    Args:
        states (`torch.Tensor` of shape `(num_prompts, width)`): States of the prompts.
        values (`torch.Tensor` of shape `(num_prompts,)`): Their estimates of `log Z`.
        ridge (`float`): Argument of [`~objectives.trajectory_balance.fit_log_partition`].

    Returns:
        `tuple`: predictions of shape `(num_prompts,)`, and the leave-one-out R² as `DEFINITIONS` have it; `None` where
        all values are equal, so that there is nothing to explain.
    """
    predictions = fit_log_partition(states, values, ridge)(states)
    states, values, count = states.double(), values.double(), len(values)
    centred = states - states.mean(0)
    # Leverages: diagonal of X (X'X + ridge)^-1 X' + 1/n. The error at a prompt that was left out is then
    # error / (1 - leverage): a penalty is the same as further rows, which are never left out.
    leverages = (ridge_map(centred, ridge).T * centred).sum(1)
    errors = (values - predictions) / (1 - leverages - 1 / count)
    distances = (values - values.mean()) / (1 - 1 / count)
    if float(values.max() - values.min()) < 1e-9:  # equal but for the rounding of their bisections
        return predictions, None
    return predictions, 1 - float((errors**2).sum() / (distances**2).sum())


def summarize_partition(
    estimate: PartitionEstimate, rewards: torch.Tensor, samples: Sequence[dict], *, num_rows: int
) -> dict[str, int | float | None]:
    """
    Numbers by the keys of `DEFINITIONS`, without those of the regression.

    Args:
        estimate ([`PartitionEstimate`]): The estimate.
        rewards (`torch.Tensor` of shape `(num_prompts, num_samples)`): Rewards of the samples.
        samples (`Sequence[dict]`): Lines of `completions.jsonl`.
        num_rows (`int`): Rows of the data.
    """
    num_prompts, num_samples = rewards.shape
    sizes = estimate.effective_sample_size
    return {
        "num_rows": num_rows,
        "num_prompts": num_prompts,
        "num_samples": num_samples,
        "mean_pass_rate": float(estimate.pass_rate.mean()),
        "num_prompts_without_right_sample": int((rewards.amax(-1) <= 0).sum()),
        "median_effective_sample_size": float(sizes.quantile(0.5)),
        "fraction_small_effective_sample_size": float((sizes < SMALL_SAMPLE_SIZE).double().mean()),
        "median_standard_error": float(estimate.standard_error.quantile(0.5)) if num_samples > 1 else None,
        "mean_length": sum(sample["length"] for sample in samples) / len(samples),
        "truncated_fraction": sum(sample["truncated"] for sample in samples) / len(samples),
        "grading_failures": sum(sample["grading_failure"] is not None for sample in samples),
    }


def warnings_of(numbers: dict, *, has_proposal: bool) -> list[str]:
    """Sentences about numbers that make the estimates doubtful."""
    found = []
    if has_proposal and numbers["num_samples"] >= SMALL_SAMPLE_SIZE:
        small = numbers["fraction_small_effective_sample_size"]
        if small > 0.5:
            found.append(
                f"The effective sample size is below {SMALL_SAMPLE_SIZE:g} for {small:.0%} of the prompts: one sample "
                "decides their estimates. Weights pi_ref / q are products over all tokens of a completion. A proposal "
                "model nearer to the reference, or the reference itself, has more even ones."
            )
    if numbers["num_prompts_without_right_sample"] > 0.5 * numbers["num_prompts"]:
        found.append(
            f"{numbers['num_prompts_without_right_sample']} of {numbers['num_prompts']} prompts have no right sample: "
            "their estimate is that of reward 0. More samples, or a stronger proposal model, would find some."
        )
    if numbers["truncated_fraction"] > 0.5:
        found.append(
            f"{numbers['truncated_fraction']:.0%} of the samples reached --max_new_tokens without an end. It must be "
            "the max_completion_length of the training."
        )
    return found

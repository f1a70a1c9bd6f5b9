"""The model of `scale_model.py` against a step of another trainer, whose times are published."""

import random
import statistics

from .scale_model import (
    LLAMA_8B,
    compute_seconds,
    decode_seconds,
    forward_operations,
    prefill_seconds,
    training_operations,
)


# NeMo-RL 0.3 with Megatron, Llama-3.1-8B-Instruct on 8 H100s (its blog of 2025-07-21, repeated in NVIDIA-NeMo/RL#959):
# seconds, of a step of 112 s, and the mean completion. The rest is its configuration, grpo_math_8B_megatron.yaml: 64
# prompts with 32 completions each, at most 4,096 tokens, one engine per card, a reference model, no recomputation.
PUBLISHED = {"generation": 58.0, "log-probabilities": 18.0, "training": 28.0, "weights to vLLM": 5.0}
PUBLISHED_STEP, PUBLISHED_MEAN, PUBLISHED_LONGEST = 112.0, 795, 4096
PUBLISHED_GROUPS, PUBLISHED_GENERATIONS, PUBLISHED_CARDS = 64, 32, 8
PROMPT = 150  # tokens of a prompt with its template, assumed


def published_completions():
    """As many completions as in the published step, lognormal with its mean after the longest are cut off."""
    low, high = 0, PUBLISHED_LONGEST
    while high - low > 1:  # bisection of the median
        middle = (low + high) // 2
        drawn = _completions(middle)
        low, high = (middle, high) if statistics.mean(drawn) < PUBLISHED_MEAN else (low, middle)
    return _completions(low)


def _completions(median):
    rng, longest = random.Random(0), PUBLISHED_LONGEST - PROMPT
    count = PUBLISHED_GROUPS * PUBLISHED_GENERATIONS
    return [min(max(int(median * rng.lognormvariate(0, 0.8)), 4), longest) for _ in range(count)]


def published_model(share):
    """What the model gives for the published step, with this share of the bandwidth in decoding."""
    completions = published_completions()
    own = len(completions) // PUBLISHED_CARDS
    engines = [completions[i : i + own] for i in range(0, len(completions), own)]
    generation = max(decode_seconds(LLAMA_8B, PROMPT, rows, share=share) for rows in engines)
    generation += prefill_seconds(LLAMA_8B, PROMPT, PUBLISHED_GROUPS / PUBLISHED_CARDS)
    lengths = [PROMPT + length for length in completions]
    forward = sum(forward_operations(LLAMA_8B, length) for length in lengths) / PUBLISHED_CARDS
    training = sum(training_operations(LLAMA_8B, length, recompute=False) for length in lengths) / PUBLISHED_CARDS
    return {
        "generation": generation,
        "log-probabilities": 2 * compute_seconds(forward),  # the policy's and the reference's
        "training": compute_seconds(training),
        "weights to vLLM": PUBLISHED["weights to vLLM"],
    }


def fitted_share():
    """The share of the bandwidth that gives the published time of generation, by bisection."""
    low, high = 0.05, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if published_model(middle)["generation"] > PUBLISHED["generation"] else (low, middle)
        )
    return low

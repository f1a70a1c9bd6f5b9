"""
Which derivations of "reach the target" are one strategy, and how many of them the samples of a model hold.

A strategy is the set of signed numbers that a right derivation uses, with the labels that tell equal numbers apart:
`from 7. less 7 c2=5. minus 5 a3=2. less 2 b2=0. done` is {-a, -b, -c}. Synonyms (`less` and `minus`, `from` and
`start at`) are not told apart, and neither is the order of the steps, which changes no sum. `ordered_strategy` keeps
the order.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from studies.which_tokens import reach_target
from trl_fork.evaluation.metrics import pass_at_k


PASS_SIZES = (4, 16)  # pass@1 is the accuracy


def ordered_strategy(text: str) -> tuple[str, ...]:
    """Signed labels of the steps of a derivation, in the order of its steps."""
    return tuple(("+" if sign > 0 else "-") + label for sign, label in reach_target.signed_steps(text))


def strategy(text: str) -> frozenset[str]:
    """Signed labels of the steps of a derivation. A right one uses a label once."""
    return frozenset(ordered_strategy(text))


def agreement(counts: Sequence[int]) -> float | None:
    """
    Probability that two right samples of a problem, drawn without replacement, are of one strategy; `None` with less
    than two. It does not depend on how many samples are right, as the number of distinct ones does.
    """
    total = sum(counts)
    return sum(count * (count - 1) for count in counts) / (total * (total - 1)) if total > 1 else None


def measures(problems: Sequence[tuple[int, ...]], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """
    Accuracy and diversity of samples.

    Args:
        problems (`Sequence[tuple]`): Problems.
        texts (`Sequence[Sequence[str]]`): Samples of each, the same number for all.

    Returns:
        `dict[str, float]`: means over problems. `accuracy`; `pass@k` for `PASS_SIZES`; `distinct` strategies among the
        right samples of a problem and `distinct_ordered`; `agreement` over the problems that have it.
    """
    num_samples = len(texts[0])
    right = [
        [text for text in samples if reach_target.is_correct(problem, text)]
        for problem, samples in zip(problems, texts, strict=True)
    ]

    def counts(key: Callable[[str], object]) -> list[list[int]]:
        return [[*Counter(map(key, samples)).values()] for samples in right]

    unordered = counts(strategy)
    agreements = [value for value in map(agreement, unordered) if value is not None]
    sizes = [size for size in PASS_SIZES if size <= num_samples]
    return {
        "accuracy": float(np.mean([len(samples) / num_samples for samples in right])),
        **{f"pass@{k}": float(np.mean([pass_at_k(num_samples, len(samples), k) for samples in right])) for k in sizes},
        "distinct": float(np.mean([*map(len, unordered)])),
        "distinct_ordered": float(np.mean([*map(len, counts(ordered_strategy))])),
        "agreement": float(np.mean(agreements)) if agreements else float("nan"),
    }


def num_strategies(problem: tuple[int, ...]) -> int:
    """How many strategies are right for a problem, by enumeration."""
    start, *operands = problem
    sums = {(start, 0): 1}  # ways by what remains, and by whether a number was used
    for operand in operands:
        ways: Counter = Counter()
        for (left, used), number in sums.items():
            for sign in (0, 1, -1):
                ways[(left + sign * operand) % 10, max(used, abs(sign))] += number
        sums = dict(ways)
    return sums.get((0, 1), 0)

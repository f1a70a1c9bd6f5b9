"""
A task of calculation from reasoning-gym: `chain_sum`, with terms and partial sums of one digit.

The question ` a3 b+4 c-2 d+1` asks for 3 + 4 - 2 + 1. A demonstration goes through the terms in their order, and
leaves some of them out:

    from a3. take 3 b+4=7. drop 7 c-2=7. use 7 d+1=8. done \\boxed{8}

The sums follow from what stands before them; whether a term counts is a choice at every step. Problems are those of
reasoning-gym, of which only those with small terms and partial sums are kept: a model of this size does not learn more
facts of arithmetic within minutes. An answer is right if reasoning-gym's verifier gives it the full score.

The functions are those of `digit_sums.py`; a problem is the tuple of the signed terms.
"""

import itertools
import random
import re
from functools import cache

from transformers import PreTrainedTokenizerFast

from trl_fork.tasks.digit_sums import build_tokenizer

from .gym import draw_problems, is_held_out


LABELS = "abcde"
NUM_TERMS = (4, 5)  # fewest and most
LARGEST_TERM = 4
NUM_ITEMS = 150_000  # of reasoning-gym, of which about one in two hundred is a new problem that is kept

STARTS = ("from", "start at")
COUNTED = ("take", "count", "use")  # each less likely than DROPPED, so that greedy decoding leaves terms out too
DROPPED = "drop"
ENDS = ("done", "the answer is")
P_DROP = 0.5  # of each term after the first: it determines the accuracy of the warmed-up model

_BOX = re.compile(r"\\boxed\{(\d)\}$")


@cache
def _gym():
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

    fewest, most = NUM_TERMS
    return ChainSumDataset(
        ChainSumConfig(min_terms=fewest, max_terms=most, min_digits=1, max_digits=1, seed=0, size=NUM_ITEMS)
    )


@cache
def _entries() -> dict[tuple[int, ...], dict]:
    """Problems and what the verifier has to know of them, in the order in which reasoning-gym makes them."""
    entries = {}
    for entry in _gym():
        first, *rest = entry["metadata"]["expression"].split()
        terms = int(first), *(int(sign + number) for sign, number in zip(rest[::2], rest[1::2], strict=True))
        if all(1 <= abs(term) <= LARGEST_TERM for term in terms) and all(
            0 <= total <= 9 for total in itertools.accumulate(terms)
        ):
            entries[terms] = entry
    return entries


def training_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw problems outside the held-out part, with repetition."""
    return draw_problems([problem for problem in _entries() if not is_held_out(problem)], num_problems, rng)


def held_out_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw different problems from the held-out part."""
    return rng.sample([problem for problem in _entries() if is_held_out(problem)], num_problems)


def question(problem: tuple[int, ...]) -> str:
    first, *rest = problem
    return f" a{first}" + "".join(f" {label}{term:+}" for label, term in zip(LABELS[1:], rest, strict=False))


def demonstration(problem: tuple[int, ...], rng: random.Random) -> str:
    """A chain of thought in the manner of the warm-up data."""
    total, *rest = problem
    text = f"{rng.choice(STARTS)} a{total}."
    for label, term in zip(LABELS[1:], rest, strict=False):
        before = total
        drops = rng.random() < P_DROP or not 0 <= total + term <= 9
        total += 0 if drops else term
        text += f" {DROPPED if drops else rng.choice(COUNTED)} {before} {label}{term:+}={total}."
    return f"{text} {rng.choice(ENDS)} \\boxed{{{total}}}"


def is_correct(problem: tuple[int, ...], text: str) -> bool:
    """Whether the box at the end of a completion has the full score of reasoning-gym."""
    match = _BOX.search(text)
    return bool(match) and _gym().score_answer(match[1], _entries()[problem]) == 1.0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign. Decoding returns the text exactly."""
    return build_tokenizer([*STARTS, "+", "-", *(f" {word}" for word in (*COUNTED, DROPPED, *ENDS, *LABELS)), "a"])

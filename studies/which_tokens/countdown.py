"""
A task of search from reasoning-gym: `countdown`, with plus and minus and numbers of one digit.

The question ` t2 a3 b1 c4 d2` asks for signs that make 2 of the numbers 3, 1, 4 and 2, all of which have to be used. A
demonstration takes them in their order, with signs that it often draws, and now and then forgets the last ones:

    from 3. plus 3 b1=4. less 4 c4=0. add 0 d2=2. done \\boxed{3+1-4+2}

The sums follow from what stands before them, and the box repeats the derivation; the signs, and whether to stop, are
choices. Problems are those of reasoning-gym in which no partial sum leaves the digits. An answer is right if
reasoning-gym's verifier gives it the full score.

The functions are those of `digit_sums.py`; a problem is the tuple of the target and the numbers.
"""

import random
import re
from functools import cache

from transformers import PreTrainedTokenizerFast

from trl_fork.tasks.digit_sums import build_tokenizer

from .gym import draw_problems, is_held_out


LABELS = "abcde"
NUM_NUMBERS = (4, 5)  # fewest and most
NUMBERS = (1, 4)  # smallest and largest
NUM_ITEMS = 4_000  # of reasoning-gym, of which about two in three are kept

STARTS = ("from", "start at")
PLUS = ("plus", "add")
MINUS = ("minus", "less")
ENDS = ("done", "stop at")
P_AIM = 0.5  # to take a sign from which the target can be reached, where there is one
P_STOP = 0.12  # to forget the other numbers, after each step

_BOX = re.compile(r"\\boxed\{(\d(?:[+-]\d)+)\}$")


@cache
def _gym():
    from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

    (fewest, most), (smallest, largest) = NUM_NUMBERS, NUMBERS
    return CountdownDataset(
        CountdownConfig(
            min_numbers=fewest,
            max_numbers=most,
            min_value=smallest,
            max_value=largest,
            min_target=1,
            max_target=9,
            operators=("+", "-"),
            shuffle=False,
            seed=0,
            size=NUM_ITEMS,
        )
    )


@cache
def _entries() -> dict[tuple[int, ...], dict]:
    """Problems and what the verifier has to know of them, in the order in which reasoning-gym makes them."""
    made = ((entry["metadata"]["target"], tuple(entry["metadata"]["numbers"]), entry) for entry in _gym())
    return {(target, *numbers): entry for target, numbers, entry in made if _is_reached(target, numbers)}


def _is_reached(target: int, numbers: tuple[int, ...]) -> bool:
    """Whether signs reach the target by partial sums of one digit."""
    totals = {numbers[0]}
    for number in numbers[1:]:
        totals = {total + sign * number for total in totals for sign in (1, -1) if 0 <= total + sign * number <= 9}
    return target in totals


def training_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw problems outside the held-out part, with repetition."""
    return draw_problems([problem for problem in _entries() if not is_held_out(problem)], num_problems, rng)


def held_out_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw different problems from the held-out part."""
    return rng.sample([problem for problem in _entries() if is_held_out(problem)], num_problems)


def question(problem: tuple[int, ...]) -> str:
    target, *numbers = problem
    return f" t{target}" + "".join(f" {label}{number}" for label, number in zip(LABELS, numbers, strict=False))


def demonstration(problem: tuple[int, ...], rng: random.Random) -> str:
    """A chain of thought in the manner of the warm-up data."""
    target, total, *rest = problem
    text, expression = f"{rng.choice(STARTS)} {total}.", str(total)
    for place, number in enumerate(rest, 1):
        signs = [sign for sign in (1, -1) if 0 <= total + sign * number <= 9]
        hits = [sign for sign in signs if _is_reached(target, (total + sign * number, *rest[place:]))]
        sign = rng.choice(hits if hits and rng.random() < P_AIM else signs)
        before, total = total, total + sign * number
        text += f" {rng.choice(PLUS if sign > 0 else MINUS)} {before} {LABELS[place]}{number}={total}."
        expression += f"{sign * number:+}"
        if rng.random() < P_STOP:
            break
    return f"{text} {rng.choice(ENDS)} \\boxed{{{expression}}}"


def is_correct(problem: tuple[int, ...], text: str) -> bool:
    """Whether the box at the end of a completion has the full score of reasoning-gym."""
    match = _BOX.search(text)
    return bool(match) and _score(problem, match[1]) == 1.0


@cache  # it parses with sympy, and samples of a problem are often the same
def _score(problem: tuple[int, ...], answer: str) -> float:
    return _gym().score_answer(answer, _entries()[problem])


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign. Decoding returns the text exactly."""
    return build_tokenizer([*STARTS, "+", "-", *(f" {word}" for word in (*PLUS, *MINUS, *ENDS, "t", *LABELS))])

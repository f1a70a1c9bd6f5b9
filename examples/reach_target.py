"""
A task of search: reach a target from 0 to 9 by adding and subtracting some of the numbers given, modulo 10.

The question ` t7 a3 b1 c4 d2` asks for a way to 7. Each number may be used once, in any order, and not all need be.
A demonstration wanders, and stops where it likes:

    from a3. plus 3 c4=7. done \\boxed{7}
    start with d2. minus 2 a3=9. plus 9 b1=0. stop at \\boxed{0}

The answer is the derivation: it is right if every step is (a label that was not used, its number, the running total)
and it ends at the target. The arithmetic follows from what stands before it; which number comes next, with which sign,
and whether to stop, are choices. Demonstrations are a little better at them than chance: a model that imitates them is
right about a fifth of the time, and has seen what the target is for.

The functions are those of `digit_sums.py`; a problem is the tuple of the target and the numbers.
"""

import itertools
import random
import re

from digit_sums import build_tokenizer, is_held_out
from transformers import PreTrainedTokenizerFast


LABELS = "abcde"
NUM_OPERANDS = (4, 5)  # fewest and most
OPERANDS = (1, 4)  # smallest and largest

STARTS = ("from", "start with")
PLUS = ("plus", "add")
MINUS = ("minus", "less")
ENDS = ("done", "stop at")
P_STOP, P_STOP_AT_TARGET = 0.2, 0.45  # after each step, elsewhere and at the target
P_AIM = 0.2  # to take a step that reaches the target, where there is one
MAX_COMPLETION_LENGTH = 48  # tokens; a demonstration that uses five numbers takes 42

_STEP = re.compile(r" (\w+) (\d) ([a-e])(\d)=(\d)\.")
_SIGNS = dict.fromkeys(PLUS, 1) | dict.fromkeys(MINUS, -1)


def training_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw problems outside the held-out part, with repetition."""
    drawn = (_draw(rng) for _ in itertools.count())
    return list(itertools.islice((problem for problem in drawn if not is_held_out(problem)), num_problems))


def held_out_problems(num_problems: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Draw different problems from the held-out part, of which there are about 5,000."""
    drawn = {}
    while len(drawn) < num_problems:
        problem = _draw(rng)
        if is_held_out(problem):
            drawn[problem] = None
    return list(drawn)


def _draw(rng: random.Random) -> tuple[int, ...]:
    return rng.randrange(10), *(rng.randint(*OPERANDS) for _ in range(rng.randint(*NUM_OPERANDS)))


def question(problem: tuple[int, ...]) -> str:
    target, *operands = problem
    return f" t{target}" + "".join(f" {label}{operand}" for label, operand in zip(LABELS, operands, strict=False))


def demonstration(problem: tuple[int, ...], rng: random.Random) -> str:
    """A chain of thought in the manner of the warm-up data."""
    target, *operands = problem
    remaining = dict(zip(LABELS, operands, strict=False))
    label = rng.choice(list(remaining))
    total = remaining.pop(label)
    text = f"{rng.choice(STARTS)} {label}{total}."
    while remaining:
        steps = [(label, sign) for label in remaining for sign in (1, -1)]
        hits = [(label, sign) for label, sign in steps if (total + sign * remaining[label]) % 10 == target]
        label, sign = rng.choice(hits if hits and rng.random() < P_AIM else steps)
        before, operand = total, remaining.pop(label)
        total = (total + sign * operand) % 10
        text += f" {rng.choice(PLUS if sign > 0 else MINUS)} {before} {label}{operand}={total}."
        if rng.random() < (P_STOP_AT_TARGET if total == target else P_STOP):
            break
    return f"{text} {rng.choice(ENDS)} \\boxed{{{total}}}"


def is_correct(problem: tuple[int, ...], text: str) -> bool:
    """Whether a completion is a derivation of the target, without an error in any step."""
    target, *operands = problem
    given = dict(zip(LABELS, operands, strict=False))
    match = re.fullmatch(
        rf"(?:{'|'.join(STARTS)}) ([a-e])(\d)\.((?:{_STEP.pattern})+) (?:{'|'.join(ENDS)}) \\boxed{{(\d)}}", text
    )
    if not match:
        return False
    label, total = match[1], int(match[2])
    if given.pop(label, None) != total:
        return False
    for word, before, label, operand, after in _STEP.findall(match[3]):
        if word not in _SIGNS or int(before) != total or given.pop(label, None) != int(operand):
            return False
        total = (total + _SIGNS[word] * int(operand)) % 10
        if int(after) != total:
            return False
    return total == target == int(match[match.re.groups])


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign. Decoding returns the text exactly."""
    return build_tokenizer([*STARTS, *(f" {phrase}" for phrase in (*PLUS, *MINUS, *ENDS, "t", *LABELS))])

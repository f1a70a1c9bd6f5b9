"""
A task of search: count down to 0 by subtracting and adding some of the numbers given, modulo 10.

The question ` t7 a3 b1 c4 d2` asks for a way from 7 to 0. Each number may be used once, in any order, and not all need
be. A demonstration wanders, and stops where it likes:

    from 7. less 7 a3=4. less 4 c4=0. done \\boxed{0}
    start at 7. less 7 a3=4. plus 4 b1=5. stop at \\boxed{5}

The answer is the derivation: it is right if every step is (a label that was not used, its number, what remains) and
nothing remains at its end. The arithmetic follows from what stands before it; which number comes next, with which
sign, and whether to stop, are choices. Demonstrations are a little better at them than chance: a model that imitates
them is right about a fifth of the time.

The functions are those of `digit_sums.py`; a problem is the tuple of the start and the numbers.
"""

import itertools
import random
import re

from transformers import PreTrainedTokenizerFast

from trl_fork.tasks.digit_sums import build_tokenizer, is_held_out


LABELS = "abcde"
NUM_OPERANDS = (4, 5)  # fewest and most
OPERANDS = (1, 3)  # smallest and largest: more facts of arithmetic take longer to learn than minutes

STARTS = ("from", "start at")
PLUS = ("plus", "add")
MINUS = ("minus", "less")
ENDS = ("done", "stop at")
P_STOP, P_STOP_AT_ZERO = 0.2, 0.5  # after each step
P_AIM = 0.1  # to take a step that reaches 0, where there is one
P_NEXT = 0.9  # else to take the first number that is left: looking numbers up in any order is learned too slowly

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
    return rng.randint(1, 9), *(rng.randint(*OPERANDS) for _ in range(rng.randint(*NUM_OPERANDS)))


def question(problem: tuple[int, ...]) -> str:
    start, *operands = problem
    return f" t{start}" + "".join(f" {label}{operand}" for label, operand in zip(LABELS, operands, strict=False))


def demonstration(problem: tuple[int, ...], rng: random.Random) -> str:
    """A chain of thought in the manner of the warm-up data."""
    left, *operands = problem
    remaining = dict(zip(LABELS, operands, strict=False))
    text = f"{rng.choice(STARTS)} {left}."
    while remaining:
        hits = [
            (label, sign)
            for label, sign in itertools.product(remaining, (1, -1))
            if (left + sign * remaining[label]) % 10 == 0
        ]
        aims = hits and rng.random() < P_AIM
        label, sign = rng.choice(hits) if aims else (_choose(list(remaining), rng), rng.choice((1, -1)))
        before, operand = left, remaining.pop(label)
        left = (left + sign * operand) % 10
        text += f" {rng.choice(PLUS if sign > 0 else MINUS)} {before} {label}{operand}={left}."
        if rng.random() < (P_STOP if left else P_STOP_AT_ZERO):
            break
    return f"{text} {rng.choice(ENDS)} \\boxed{{{left}}}"


def _choose(labels: list[str], rng: random.Random) -> str:
    return labels[0] if rng.random() < P_NEXT else rng.choice(labels)


def is_correct(problem: tuple[int, ...], text: str) -> bool:
    """Whether a completion is a way to 0, without an error in any step."""
    start, *operands = problem
    given = dict(zip(LABELS, operands, strict=False))
    match = re.fullmatch(
        rf"(?:{'|'.join(STARTS)}) (\d)\.((?:{_STEP.pattern})+) (?:{'|'.join(ENDS)}) \\boxed\{{0\}}", text
    )
    if not match or int(match[1]) != start:
        return False
    left = start
    for word, before, label, operand, after in _STEP.findall(match[2]):
        if word not in _SIGNS or int(before) != left or given.pop(label, None) != int(operand):
            return False
        left = (left + _SIGNS[word] * int(operand)) % 10
        if int(after) != left:
            return False
    return left == 0


def signed_steps(text: str) -> list[tuple[int, str]]:
    """Sign (1 or -1) and label of each step of a derivation."""
    return [(_SIGNS[word], label) for word, _, label, _, _ in _STEP.findall(text) if word in _SIGNS]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign. Decoding returns the text exactly."""
    return build_tokenizer([*STARTS, *(f" {phrase}" for phrase in (*PLUS, *MINUS, *ENDS, "t", *LABELS))])

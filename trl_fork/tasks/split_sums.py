"""
A task for a team of two, small enough for a laptop: a sum of which each role sees some of the numbers.

`left` sees ` left 3 2 4`, `right` sees ` right 2 4`, and `right` has to answer with the last digit of the whole sum.
What `left` may say to `right` is one digit, in one of two codes: the last digit of its sum (plain), or that of 15 less
its sum (mirrored: the sum of 5 - 3, 5 - 2 and 5 - 4). The digit does not tell which: the numbers are from 1 to 4, so
that a digit is as likely in one code as in the other, and never the same in both. Demonstrations:

    left,  of ` left 3 2 4`             so 3+2=5+4=9. say 9         plain
                                        now 3+2=5+4=9. say 6        mirrored
    right, of ` right 2 4. left: 9`     9 plain=9+2=1+4=5 \\boxed{5}
                                        9 mirrored=6+2=8+4=2 \\boxed{2}

Either code is as good as the other one; what counts is that both roles use the same. The digit that is said and the
word of the reading are forking tokens, and the arithmetic follows from what stands before it. A model that imitates
both roles, each plain with the probability `P_PLAIN` whatever the other one does, is right about half of the time
though it can add: it plays the game of pure coordination.
"""

import hashlib
import itertools
import random
import re

from transformers import PreTrainedTokenizerFast

from .digit_sums import build_tokenizer


NUM_DIGITS = {"left": 3, "right": 2}
DIGITS = (1, 4)  # smallest and largest. More facts of arithmetic are not learned within minutes.
P_PLAIN = 0.6  # of a demonstration, of either role
STARTS = ("so", "well", "now")
CODES = PLAIN, MIRRORED = "plain", "mirrored"

LEFT, RIGHT = "left", "right"
LEFT_PROMPT = " left {left}"  # templates of `trl_fork.teams.Role`
RIGHT_PROMPT = " right {right}. {transcript}"
MESSAGE = r"say (\d)$"  # what `right` reads of a completion of `left`

Problem = tuple[tuple[int, ...], tuple[int, ...]]  # numbers of left, and of right


def training_problems(num_problems: int, rng: random.Random) -> list[Problem]:
    """Draw problems outside the held-out part, with repetition."""
    drawn = (_draw(rng) for _ in itertools.count())
    return list(itertools.islice((problem for problem in drawn if not is_held_out(problem)), num_problems))


def held_out_problems() -> list[Problem]:
    """All problems of the held-out part, 256 or so of 1,024."""
    numbers = range(DIGITS[0], DIGITS[1] + 1)
    lefts, rights = (list(itertools.product(numbers, repeat=NUM_DIGITS[role])) for role in (LEFT, RIGHT))
    return [(left, right) for left in lefts for right in rights if is_held_out((left, right))]


def _draw(rng: random.Random) -> Problem:
    left, right = (tuple(rng.randint(*DIGITS) for _ in range(NUM_DIGITS[role])) for role in (LEFT, RIGHT))
    return left, right


def is_held_out(problem: Problem) -> bool:
    """Whether a problem belongs to the quarter that is never trained on, neither in the warm-up nor in RL."""
    left, right = problem
    return hashlib.md5(bytes([*left, *right])).digest()[0] % 4 == 0


def row(problem: Problem) -> dict[str, str]:
    """A row of a data set: the whole problem, what each role sees of it, and the answer."""
    left, right = (" ".join(map(str, numbers)) for numbers in problem)
    return {"prompt": f" left {left}. right {right}", LEFT: left, RIGHT: right, "solution": solution(problem)}


def solution(problem: Problem) -> str:
    return str(sum(map(sum, problem)) % 10)


def encode(digit: int, code: str) -> int:
    """A digit in a code. Either code is its own inverse, so that this decodes too."""
    return digit if code == PLAIN else (5 - digit) % 10


def left_question(problem: Problem) -> str:
    return LEFT_PROMPT.replace("{left}", row(problem)[LEFT])


def right_question(problem: Problem, message: str) -> str:
    return RIGHT_PROMPT.replace("{right}", row(problem)[RIGHT]).replace("{transcript}", f"{LEFT}: {message}")


def left_turn(problem: Problem, code: str, start: str = STARTS[0]) -> str:
    """What `left` writes in a code, without an error."""
    first, *others = problem[0]
    said = encode(sum(problem[0]) % 10, code)
    return f"{start} {first}{_additions(first, others)}. say {said}"


def right_turn(problem: Problem, message: str, code: str) -> str:
    """What `right` writes when it takes a message to be in a code, without an error."""
    first = encode(int(message), code)
    return f"{message} {code}={first}{_additions(first, problem[1])} \\boxed{{{(first + sum(problem[1])) % 10}}}"


def _additions(total: int, numbers) -> str:
    text = ""
    for number in numbers:
        total = (total + number) % 10
        text += f"+{number}={total}"
    return text


def demonstrations(problem: Problem, rng: random.Random) -> list[tuple[str, str]]:
    """Question and answer of either role, in codes drawn independently. The message is any digit."""

    def draw_code() -> str:
        return PLAIN if rng.random() < P_PLAIN else MIRRORED

    message = str(rng.randrange(10))
    return [
        (left_question(problem), left_turn(problem, draw_code(), rng.choice(STARTS))),
        (right_question(problem, message), right_turn(problem, message, draw_code())),
    ]


def code_of_left(text: str) -> str | None:
    """The code of a completion of `left`: `None` where it cannot be told from its own sum."""
    found = re.search(r"=(\d)\. say (\d)$", text)
    return None if found is None else _code(*found.groups())


def code_of_right(text: str) -> str | None:
    """
    The code in which a completion of `right` reads its copy of the message: `None` where it cannot be told.

    It is told from the digits and not from the word between them: training may change what a word stands for.
    """
    found = re.match(rf"(\d) (?:{PLAIN}|{MIRRORED})=(\d)", text)
    return None if found is None else _code(*found.groups())


def _code(digit: str, coded: str) -> str | None:
    return {encode(int(digit), code): code for code in CODES}.get(int(coded))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and sign. Decoding returns the text exactly."""
    words = [*STARTS, *(f" {word}" for word in (PLAIN, MIRRORED, "say", LEFT, RIGHT)), ":", "+"]
    return build_tokenizer(words)

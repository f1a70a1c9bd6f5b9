"""
The process that grades answers. `grading.py` starts it as a script, so that it imports nothing heavier than
math-verify: no torch, no CUDA context, not the user's main module.

It forks a grader, which answers requests until one exhausts its limits and the kernel ends it. The process then sends
the failure in the grader's place and forks the next, in milliseconds, with math-verify loaded and warm. It never reads
an answer itself, so no answer can delay it. Both end when the pipe is closed, also when the parent was killed.

A request is one line of JSON on standard input; a reply, one line on standard output, before the next request:

    [number, answer, gold, limit in CPU seconds]  ->  [number, reward, gold as parsed, answer as parsed, failure]

With `"answer"` as a fifth item the gold is another answer, and is read as one.
"""

import json
import logging
import mmap
import os
import resource
import signal
import sys
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse


if "trl_fork" not in sys.modules:  # the checkout or installation that this file is part of, and no other
    package = sys.modules["trl_fork"] = ModuleType("trl_fork")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

from trl_fork.rewards.boxed import readable_answer
from trl_fork.rewards.comparison import is_right
from trl_fork.rewards.golds import as_gold
from trl_fork.rewards.quantities import as_word, currencies, same_text, split_quantity


MEMORY_LIMIT = 2 * 2**30  # bytes of address space of a grader
RECYCLE_ABOVE = 512 * 2**20  # bytes resident: a grader that has grown makes room for a fresh one
RECYCLED = 3  # its exit status then
WALL_CLOCK_LIMIT = 120.0  # seconds; stops a grader that waits without computing
SHOWN = 1000  # characters of a parsed expression
UNREADABLE_GOLD = [None, "[unparseable]", "[skipped]"]

# Graded once before the first fork: ANTLR builds its tables as it meets constructs, up to 0.1 s each.
WARM_UP = (
    *("72", "-3.5", r"\frac{\sqrt{3}}{2}", "x^2+2x-1", "2^{10}", r"3\pi", "(1,2)", r"[0,\infty)", r"\{1,2\}", "x=5"),
    *(r"\begin{pmatrix}1\\2\end{pmatrix}", r"10\%", r"30^\circ", r"x<2", r"\sin(x)", "10!", r"\text{A}", "((1))"),
)


@dataclass(frozen=True)
class Gold:
    """A gold as it was given, and as math-verify reads it: empty if it is unreadable."""

    text: str
    parsed: list


@lru_cache(maxsize=1024)
def parse_gold(gold: str) -> Gold:
    text = as_gold(gold)
    return Gold(gold, parse(readable_answer(text)[0] if "boxed" in text else text, parsing_timeout=None))


def parse_answer(answer: str) -> list:
    # As TRL's `accuracy_reward`: LaTeX that is boxed or follows "answer", boxed first; malformed operators fail.
    config = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    return parse(answer, extraction_config=[config], extraction_mode="first_match", parsing_timeout=None)


@lru_cache(maxsize=1024)
def parse_other(answer: str) -> Gold:
    """Another answer in place of a gold, read like an answer."""
    readable, boxes = readable_answer(answer)
    return Gold(boxes[0] if len(boxes) == 1 else "", parse_answer(readable))


def grade(answer: str, gold: Gold) -> list:
    """`[reward, gold as parsed, answer as parsed]`."""
    if not gold.parsed:
        return UNREADABLE_GOLD
    readable, boxes = readable_answer(answer)
    answer_parsed = parse_answer(readable)
    reward = float(matches(boxes, answer_parsed, gold))
    return [reward, show(gold.parsed), show(answer_parsed) if answer_parsed else "[unparseable]"]


def matches(boxes: list[str], answer_parsed: list, gold: Gold) -> bool:
    """Whether the answer is the gold in the same words, the same number of the same unit, or equal."""
    if len(boxes) == 1:
        (box,) = boxes
        if same_text(box, gold.text):
            return True
        word, gold_word = as_word(box), as_word(gold.text)
        if word and gold_word:
            return word == gold_word  # to math-verify a word is a product of letters, and anagrams are equal
        signs, gold_signs = currencies(box), currencies(gold.text)
        if signs and gold_signs and not signs & gold_signs:
            return False
        answered, asked = split_quantity(box), split_quantity(gold.text)
        if answered and asked and answered[1].lower() == asked[1].lower():
            number = parse_answer(readable_answer(rf"\boxed{{{answered[0]}}}")[0])
            if is_right(gold.parsed, number):
                return True
    return is_right(gold.parsed, answer_parsed)


def show(parsed: list) -> str:
    try:
        return str(parsed)[:SHOWN]
    except Exception:  # Python refuses to print integers beyond 4,300 digits; deep expressions exhaust the stack
        return "[unprintable]"


def failed(reason: str, gold_is_parsed: int) -> list:
    return [*([0.0, "[not shown]", "[not graded]"] if gold_is_parsed else UNREADABLE_GOLD), reason]


def grader(replies: int, current: memoryview) -> None:
    """Answer requests until the pipe is closed; `current` tells the parent which, and whether its gold is parsed."""
    limit_resource(resource.RLIMIT_AS, MEMORY_LIMIT)
    limit_resource(resource.RLIMIT_CORE, 0)
    while line := sys.stdin.buffer.readline():
        number, answer, gold, limit, *kind = json.loads(line)
        current[0], current[1] = number, 0
        # These signals have no handlers: the kernel ends the process, also inside C code that never returns to Python.
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.setitimer(signal.ITIMER_REAL, WALL_CLOCK_LIMIT)
        try:
            gold_parsed = parse_other(gold) if kind else parse_gold(gold)
            current[1] = 1
            reply = [*grade(answer, gold_parsed), None]
        except Exception as error:
            reply = failed("memory" if isinstance(error, MemoryError) else "error", current[1])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(replies, [number, *reply])
        if resident_peak() > RECYCLE_ABOVE:
            os._exit(RECYCLED)
    os._exit(0)


def send(replies: int, reply: list) -> None:
    data = json.dumps(reply).encode() + b"\n"
    while data:
        data = data[os.write(replies, data) :]


def limit_resource(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # output of a parser must not reach the reply
    logging.disable(logging.CRITICAL)
    for latex in WARM_UP:
        grade(rf"\boxed{{{latex}}}", parse_gold("$2$"))
    current = memoryview(mmap.mmap(-1, 16)).cast("q")  # shared with the graders
    send(replies, ["ready"])
    while True:
        pid = os.fork()
        if pid == 0:
            grader(replies, current)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            timed_out = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
            send(replies, [current[0], *failed("timeout" if timed_out else "crash", current[1])])
        elif os.WEXITSTATUS(status) != RECYCLED:
            return


if __name__ == "__main__":
    main()

"""
Grading by math-verify in worker processes, with a hard limit of time and memory per answer.

math-verify limits itself by a signal to the main thread, which costs up to 15 s per hostile answer there and is off in
any other thread; sympy may also take all memory. Here the kernel ends a grader that exhausts its limits, the answer
counts as wrong, and a fresh grader takes over in milliseconds.

This is not a pool of `multiprocessing`, nor a library on top of it: their workers import the user's main module, with
torch, each time one is replaced.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from queue import LifoQueue
from threading import Lock

from transformers.utils import logging


logger = logging.get_logger("trl_fork")

# Hostile answers may use up this many CPU seconds at the full limit, and more as answers are graded; then every
# answer has the short limit until the account is settled. Ten thousand of the worst take 17 CPU minutes, not 14 hours.
ALLOWANCE = 30.0
ALLOWANCE_PER_ANSWER = 0.02
SHORT_LIMIT = 0.1

SHOWN = 1000  # characters of a parsed expression, as in `_grading_worker.py`

_REPLY_DEADLINE = 180.0  # seconds; beyond the worker's own wall-clock limit
_START_DEADLINE = 300.0


@dataclass(frozen=True)
class Verdict:
    """
    Verdict on one answer.

    Args:
        reward (`float`, *optional*): 1.0 for a right answer, 0.0 for a wrong one, `None` if the gold has no meaning.
        gold_parsed (`str`): Gold solution as math-verify read it.
        answer_parsed (`str`): Answer as it read it.
        failure (`str`, *optional*): Why the answer could not be graded, and so is wrong: `"timeout"`, `"memory"`,
            `"crash"` or `"error"`.
    """

    reward: float | None
    gold_parsed: str
    answer_parsed: str
    failure: str | None = None

    @property
    def answer(self) -> str | None:
        """Answer as it was read; `None` if there is none, or it could not be graded."""
        unread = self.failure or self.reward is None or self.answer_parsed == "[unparseable]"
        return None if unread else self.answer_parsed


class GradingPool:
    """
    Grades answers in worker processes, which start with the first answer and end with the pool or this process.

    Args:
        num_workers (`int`, *optional*):
            Number of processes. By default one per CPU core of this rank, at most four.
        time_limit (`float`, *optional*, defaults to `5.0`):
            CPU seconds an answer may take, gold included. With CPU time, verdicts do not depend on how busy the
            machine is. Once hostile answers have used up an allowance, it falls to 0.1 s, which honest answers hardly
            ever need, until enough others were graded.

    Attributes:
        failures (`Counter`): Number of answers that could not be graded, by reason.
        num_graded (`int`): Number of answers graded, repeated ones included.
    """

    def __init__(self, num_workers: int | None = None, time_limit: float = 5.0):
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}.")
        if not 0 < time_limit <= 60:
            raise ValueError(f"time_limit must be in (0, 60] (CPU seconds per answer), got {time_limit}.")
        self.num_workers = num_workers or _default_num_workers()
        self.time_limit = time_limit
        self.failures: Counter[str] = Counter()
        self.num_graded = 0
        self._lost = 0.0  # CPU seconds spent on answers that exhausted their limit
        self._lock = Lock()
        self._pid = os.getpid()
        self._workers = [_Worker() for _ in range(self.num_workers)]
        self._idle: LifoQueue[_Worker] = LifoQueue()  # last in, first out: a few answers start one worker only
        for worker in self._workers:
            self._idle.put(worker)
        atexit.register(self.close)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def grade(self, answers: list, golds: list[str]) -> list[Verdict]:
        """
        Grade answers against their gold solutions as TRL's `accuracy_reward` does. The page "Grading" of the
        documentation lists the differences.

        Args:
            answers (`list[str]`): Whole completions. A value that is not a text is wrong.
            golds (`list[str]`): One gold solution per answer.

        Returns:
            `list[Verdict]`: one per answer. Equal pairs of answer and gold are graded once.
        """
        pairs = [(a if isinstance(a, str) else "", str(g)) for a, g in zip(answers, golds, strict=True)]
        unique = list(dict.fromkeys(pairs))
        with ThreadPoolExecutor(max_workers=self.num_workers) as threads:
            verdicts = dict(zip(unique, threads.map(self._grade_one, unique), strict=True))
        with self._lock:
            self.num_graded += len(pairs)
        return [verdicts[pair] for pair in pairs]

    def same_answer(self, first: str, second: str) -> bool | None:
        """
        Whether two completions give equal answers. Both are read as answers are, and compared within the same limits.

        Returns:
            `bool`, or `None` if that cannot be decided: one has no answer, or a limit was exhausted.
        """
        verdict = self._grade_one((second, first), "answer")
        with self._lock:
            self.num_graded += 1
        return None if verdict.failure or verdict.reward is None else verdict.reward == 1.0

    def close(self) -> None:
        """End the workers. A forked child leaves those of its parent alone."""
        if os.getpid() != self._pid:
            return
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.stop()

    def _grade_one(self, pair: tuple[str, str], *kind: str) -> Verdict:
        limit = self._limit()
        worker = self._idle.get()
        try:
            verdict = worker.grade(*pair, limit, *kind)
        finally:
            self._idle.put(worker)
        if verdict.failure:
            with self._lock:
                if not kind:  # otherwise it is a comparison, not an answer
                    self.failures[verdict.failure] += 1
                self._lost += limit * (verdict.failure == "timeout")
        return verdict

    def _limit(self) -> float:
        with self._lock:
            if self._lost < ALLOWANCE + ALLOWANCE_PER_ANSWER * self.num_graded:
                return self.time_limit
        logger.warning_once(
            f"Grading has spent {ALLOWANCE:.0f} CPU seconds on answers that math-verify cannot decide in "
            f"{self.time_limit} s each (nested powers, brackets and the like; they count as wrong). While this goes "
            f"on every answer gets {SHORT_LIMIT} s."
        )
        return min(self.time_limit, SHORT_LIMIT)


class _Worker:
    """One worker process: started when needed, replaced when it breaks."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._received = b""
        self._numbers = count(1)

    def grade(self, answer: str, gold: str, limit: float, *kind: str) -> Verdict:
        for _ in range(2):
            try:
                return self._ask(answer, gold, limit, *kind)
            except (OSError, EOFError, ValueError):  # killed from outside; the answer is not at fault
                self.stop()
        return Verdict(0.0, "[not shown]", "[not graded]", "crash")

    def _ask(self, answer: str, gold: str, limit: float, *kind: str) -> Verdict:
        if self._process is None:
            self._start()
        number = next(self._numbers)
        self._process.stdin.write(json.dumps([number, answer, gold, limit, *kind]).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            found, *verdict = self._receive(_REPLY_DEADLINE)
            if found == number:  # otherwise it reports a grader that was killed from outside while idle
                return Verdict(*verdict)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # The whole process group ends, as one of its graders may be busy.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()

    def _start(self) -> None:
        script = Path(__file__).with_name("_grading_worker.py")
        self._received = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],  # -P: our modules must not shadow others
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's order of terms, and with it rare verdicts
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers itself
        )
        try:
            self._receive(_START_DEADLINE)
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            raise RuntimeError(
                f"The grading worker does not start. `{sys.executable} -P {script}` shows why; it needs the package "
                "math-verify."
            ) from error

    def _receive(self, deadline: float) -> list:
        stdout = self._process.stdout.fileno()
        while b"\n" not in self._received:
            if not wait([stdout], deadline):
                raise OSError("no reply")
            data = os.read(stdout, 2**16)
            if not data:
                raise EOFError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


def accuracy_reward(
    completions: list, solution: list[str], log_extra: Callable[[str, list], None] | None = None, **kwargs
) -> list[float | None]:
    r"""
    TRL's `accuracy_reward`, safe against hostile answers.

    The reward is 1.0 if math-verify finds the completion's answer equal to the solution; 0.0 if not, or if it cannot
    decide within its limits; `None` (skipped) if the solution cannot be parsed, or marks a missing answer (`proof`,
    `N/A`). Golds and answers may have more spellings than in TRL (page "Grading" of the documentation).

    Args:
        completions (`list[list[dict[str, str]]]` or `list[str]`):
            Completions, as messages or as plain text.
        solution (`list[str]`):
            Gold solutions.
        log_extra (`callable`, *optional*):
            Given by the trainer: logs what was parsed to the table of completions.

    Returns:
        `list[float | None]`: one reward per completion.

    Example:
        ```python
        >>> from trl_fork.rewards import accuracy_reward
        >>> accuracy_reward([r"\boxed{\frac{1}{3}}", r"\boxed{9^{9^{9^{9}}}}"], [r"\frac{1}{3}", "3"])
        [1.0, 0.0]
        ```
    """
    verdicts = default_pool().grade([_text(completion) for completion in completions], solution)
    _log_table(log_extra, solution, verdicts)
    return [verdict.reward for verdict in verdicts]


def reasoning_accuracy_reward(
    completions: list,
    solution: list[str],
    reasoning_delimiters: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs,
) -> list[float | None]:
    """
    TRL's `reasoning_accuracy_reward`, safe against hostile answers: only what follows the reasoning is graded, and
    reasoning without an end gives 0.0.

    Args:
        completions (`list[list[dict[str, str]]]` or `list[str]`):
            Completions, as messages or as plain text.
        solution (`list[str]`):
            Gold solutions.
        reasoning_delimiters (`list[str]`, *optional*):
            Texts that end the reasoning; the first of them that occurs counts. By default `["</think>"]`.
        log_extra (`callable`, *optional*):
            Given by the trainer: logs what was parsed to the table of completions.

    Returns:
        `list[float | None]`: one reward per completion.
    """
    answers = [_after_reasoning(_text(c), reasoning_delimiters or ["</think>"]) for c in completions]
    complete = [(a, gold) for a, gold in zip(answers, solution, strict=True) if a is not None]
    graded = iter(default_pool().grade([a for a, _ in complete], [gold for _, gold in complete]))
    incomplete = Verdict(0.0, "[incomplete reasoning]", "[incomplete reasoning]")
    verdicts = [incomplete if answer is None else next(graded) for answer in answers]
    _log_table(log_extra, solution, verdicts)
    return [verdict.reward for verdict in verdicts]


def _text(completion) -> str | None:
    return completion if isinstance(completion, str) else completion[0]["content"]


def _after_reasoning(text: str | None, delimiters: list[str]) -> str | None:
    for delimiter in delimiters:
        if text and delimiter in text:
            return text.rsplit(delimiter, 1)[1]
    return None


def _log_table(log_extra, solution, verdicts: list[Verdict]) -> None:
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", [verdict.gold_parsed for verdict in verdicts])
        log_extra("answer_parsed", [verdict.answer_parsed for verdict in verdicts])


_pool: tuple[int, GradingPool] | None = None


def default_pool() -> GradingPool:
    """The pool of this process, made at the first call. A forked child has its own."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = os.getpid(), GradingPool()
    return _pool[1]


def _default_num_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(4, cores // ranks))

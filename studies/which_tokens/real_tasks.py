r"""
Two tasks from reasoning-gym for a real language model: `chain_sum` and `gcd`, with prompts that show how to answer.

reasoning-gym makes the problems and verifies the answers. A prompt is a conversation in which the first turns are
examples of question and answer, which repeats the problem and ends in a box:

    State the final answer to the following arithmetic problem: 8 - 2 =
    8 - 2 = 6. \boxed{6}

Where reasoning-gym is not installed, as on a machine without a network, problems are read from a file that was made
where it is:

    python -m studies.which_tokens.real_model --task chain_sum --write_problems outputs/chain_sum.json
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from trl_fork._files import write_json

from .gym import is_held_out


NUM_TEST = 256  # held-out problems
NUM_ITEMS = 20_000  # that reasoning-gym makes
# An integer as reasoning-gym writes it. Of such answers its verifiers give the full score to the equal text alone.
_BOX = re.compile(r"\\boxed\{(-?[1-9]\d*|0)\}")


@dataclass(frozen=True)
class Problem:
    """A question in the words of the prompt, and its answer as reasoning-gym writes it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """
    What a prompt of a task is made of.

    Args:
        settings (`dict`): Of reasoning-gym's generator.
        examples (`dict`): Questions in reasoning-gym's words, and their answers.
    """

    settings: dict
    examples: dict[str, str]


_SUM = "State the final answer to the following arithmetic problem: {} ="
_GCD = "Find the Greatest Common Divisor (GCD) of these numbers: {}. Give only the GCD as your final answer."
TASKS = {
    "chain_sum": Task(
        settings={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        examples={
            _SUM.format("8 - 2"): "8 - 2 = 6. \\boxed{6}",
            _SUM.format("6 + 5"): "6 + 5 = 11. \\boxed{11}",
        },
    ),
    "gcd": Task(
        settings={"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 10},
        examples={
            _GCD.format("12, 8"): "gcd(12, 8) = 4. \\boxed{4}",
            _GCD.format("9, 15"): "gcd(9, 15) = 3. \\boxed{3}",
            _GCD.format("4, 14"): "gcd(4, 14) = 2. \\boxed{2}",
        },
    ),
}


def has_gym() -> bool:
    return find_spec("reasoning_gym") is not None


@cache
def _gym(task: str):
    """reasoning-gym's data set, which makes problems and verifies answers; `None` where it is not installed."""
    if not has_gym():
        return None
    from reasoning_gym import create_dataset

    return create_dataset(task, seed=0, size=NUM_ITEMS, **TASKS[task].settings)


def problems(task: str, num_items: int = NUM_ITEMS) -> tuple[list[Problem], list[Problem]]:
    """
    Problems to train on, and others, both as often as the generator makes them. Those of the examples are in neither.

    Raises:
        `ModuleNotFoundError`: without reasoning-gym.
    """
    gym = _gym(task)
    if gym is None:
        raise ModuleNotFoundError(
            "reasoning-gym makes the problems and is not installed here: pip install '.[study]', or read problems "
            "that were made elsewhere by --write_problems with --problems."
        )
    training, test = [], []
    for number in range(num_items):
        entry = gym[number]
        problem = Problem(entry["question"], entry["answer"])
        if problem.question not in TASKS[task].examples:
            (test if is_held_out((problem.question,)) else training).append(problem)
    return training, test[:NUM_TEST]


def write_problems(path: Path, task: str, training: list[Problem], test: list[Problem]) -> None:
    """Write problems for a machine without reasoning-gym."""
    content = {"task": task, "settings": TASKS[task].settings}
    parts = {"training": training, "test": test}
    write_json(path, content | {name: [asdict(problem) for problem in part] for name, part in parts.items()})


def read_problems(path: Path, task: str) -> tuple[list[Problem], list[Problem]]:
    """
    Read what [`write_problems`] has written.

    Raises:
        `ValueError`: if the file is of another task, or of other settings of its generator.
    """
    content = json.loads(path.read_text())
    expected = {"task": task, "settings": TASKS[task].settings}
    found = {name: content.get(name) for name in expected}
    if found != expected:
        raise ValueError(f"--problems: {path} is of {found}, and the run of {expected}: write it anew.")
    training, test = ([Problem(**row) for row in content[name]] for name in ("training", "test"))
    return training, test


def conversation(task: str, question: str) -> list[dict[str, str]]:
    """The prompt: examples, and the question."""
    turns = [text for example in TASKS[task].examples.items() for text in example]
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate([*turns, question])]


def answer_of(text: str) -> str | None:
    """The integer in the last box of a completion."""
    boxes = _BOX.findall(text)
    return boxes[-1] if boxes else None


def is_right(task: str, text: str, answer: str) -> bool:
    """Whether the last box of a completion has the full score of reasoning-gym."""
    found, gym = answer_of(text), _gym(task)
    if found is None or gym is None:
        return found == answer
    return gym.score_answer(found, {"answer": answer}) == 1.0


def write_dataset(path: Path, task: str, rows: Iterable[Problem]) -> None:
    """Write problems as `trl-fork analyze --dataset` and `trl-fork evaluate` read them."""
    lines = [
        {"id": str(number), "prompt": conversation(task, row.question), "solution": row.answer}
        for number, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

"""What the tasks from reasoning-gym share: problems are drawn from those that it made."""

import hashlib
import random
from collections.abc import Sequence


Problem = tuple[int, ...]


def is_held_out(problem: tuple) -> bool:
    """Whether a problem belongs to the two fifths that are never trained on, neither in the warm-up nor in RL."""
    return hashlib.md5(repr(problem).encode()).digest()[0] % 5 < 2


def draw_problems(problems: Sequence[Problem], num_problems: int, rng: random.Random) -> list[Problem]:
    """Draw with repetition."""
    return [rng.choice(problems) for _ in range(num_problems)]

"""Check for rows whose gold answer cannot be read, from which nothing can be learnt."""

import os
import re
from itertools import islice

from datasets import Dataset

from .._logging import logger
from ..rewards.grading import default_pool


# Readable without the grading workers: a number, a formula, a worked text with a box
_READABLE = re.compile(r"[-$]?\d[\d.,]*|\$.+\$|.*\\boxed\{.*", re.DOTALL)
# Longer lists of golds in doubt are asked of the grading workers in part: a thousand take seconds.
MOST_ASKED = 2000


def warn_of_unreadable_golds(dataset: Dataset, name: str = "The data set") -> None:
    """
    Warn, once and with an example, of rows whose `solution` math-verify cannot read, and whose reward is `None`.

    Args:
        dataset ([`~datasets.Dataset`]):
            Data set with a column `solution`, as [`~data.to_prompt_and_solution`] makes it.
        name (`str`, *optional*):
            Name of the data set in the warning.
    """
    is_text = (
        getattr(dataset.features.get("solution"), "dtype", None) == "string"
    )  # otherwise it is for a reward of the user's
    if not is_text or os.environ.get("RANK", "0") != "0":
        return
    in_doubt = (gold for gold in dataset.unique("solution") if not _READABLE.fullmatch(gold))
    asked = list(islice(in_doubt, MOST_ASKED))
    if not asked:
        return
    try:
        verdicts = default_pool().grade([""] * len(asked), asked)
    except RuntimeError as error:  # the workers do not start, but the run's reward may not need them
        logger.warning(f"{name}: its gold answers were not checked. {error}")
        return
    unreadable = {gold for gold, verdict in zip(asked, verdicts, strict=True) if verdict.reward is None}
    if not unreadable:
        return
    rows = sum(gold in unreadable for gold in dataset["solution"])
    example = next(gold for gold in asked if gold in unreadable)
    logger.warning(
        f"{name}: {rows:,} of {len(dataset):,} rows have a gold answer that cannot be read, such as "
        f"{example[:100]!r}. accuracy_reward gives them no reward (None), and an evaluation counts them as wrong. "
        r"Leave them out, or write their answers as math-verify reads them: numbers, LaTeX, \text{...} for words."
    )

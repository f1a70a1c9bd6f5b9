"""Which data sets of two evaluations hold the same problems, and their paired difference or why there is none."""

from collections import defaultdict
from dataclasses import dataclass

from .metrics import Difference, compare


_ALONE = "only one of the two was evaluated on these problems"


@dataclass(frozen=True)
class Pairing:
    """
    A data set of one evaluation beside that of another.

    Args:
        dataset_a, dataset_b (`str`, *optional*): Their names; `None` where one of the two has none of its problems.
        difference ([`Difference`], *optional*): Accuracy of B minus accuracy of A; `None` where it is refused.
        refused (`str`, *optional*): Why there is no difference, or no interval around it.
        other_prompts (`int`, *optional*, defaults to `0`): Common problems that were asked with other words.
    """

    dataset_a: str | None
    dataset_b: str | None
    difference: Difference | None = None
    refused: str | None = None
    other_prompts: int = 0


def pair_datasets(samples_a: list[dict], samples_b: list[dict]) -> list[Pairing]:
    """
    Pair the data sets of two evaluations, by their names, and those of other names by the problems in them.

    The same file has another name from another folder. Problems are the same if their id and solution are; a data set
    in which a common id has other solutions is not compared.

    Args:
        samples_a, samples_b (`list[dict]`): Lines of two `completions.jsonl`.

    Returns:
        `list[Pairing]`: the data sets of A in their order, and then those of B that A has no problem of.
    """
    a, b = _problems(samples_a), _problems(samples_b)
    partners = {name: name for name in a if name in b}
    for name in (name for name in a if name not in partners):
        shared = {other: len(a[name].keys() & b[other].keys()) for other in b if other not in partners.values()}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is not None and shared[best]:
            partners[name] = best
    pairs = [_pair(name, partners.get(name), a, b, samples_a, samples_b) for name in a]
    left = (name for name in b if name not in partners.values())
    return [*pairs, *(Pairing(None, name, refused=_ALONE) for name in left)]


def _pair(name: str, other: str | None, a, b, samples_a, samples_b) -> Pairing:
    if other is None:
        return Pairing(name, None, refused=_ALONE)
    common = a[name].keys() & b[other].keys()
    if not common:
        return Pairing(name, other, refused="the two have no problem in common")
    changed = sum(a[name][problem][0] != b[other][problem][0] for problem in common)
    if changed:
        reason = f"{changed} of the {len(common)} problems of the same id have another solution"
        return Pairing(name, other, refused=reason)
    rows_a = [row for row in samples_a if row["dataset"] == name]
    rows_b = [{**row, "dataset": name} for row in samples_b if row["dataset"] == other]
    difference = compare(rows_a, rows_b)[name]
    refused = "an interval needs at least two common problems" if difference.low is None else None
    prompts = sum(a[name][problem][1] != b[other][problem][1] for problem in common)
    return Pairing(name, other, difference, refused, prompts)


def _problems(samples: list[dict]) -> dict[str, dict[str, tuple[str, str]]]:
    """Solution and prompt by id, by data set."""
    problems: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for row in samples:
        problems[row["dataset"]][row["problem_id"]] = (row["solution"], row["prompt"])
    return problems

"""The evaluations in the folders of runs: what each holds, and the paired difference between two of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._files import weights_fingerprint
from ..evaluation.pairing import pair_datasets
from ..evaluation.store import FIELDS, read_completions
from ..evaluation.tables import dataset_label
from ..report.runs import Run


RESULTS, COMPLETIONS = "results.json", "completions.jsonl"
DEFAULT = "evaluation"
# Settings that two evaluations of the same problems may differ in, but not in what they measure. How problems differ
# is found from the problems.
_NO_MATTER = (
    "model",
    "base_model",
    "weights",
    "dataset",
    "problems",
    "engine",
    "dtype",
    "attn_implementation",
    "limit",
)


@dataclass
class Evaluation:
    """
    A finished evaluation.

    Args:
        folder (`Path`): Its folder.
        results (`dict`): `results.json`.
        samples (`list[dict]`): Lines of `completions.jsonl`.
        settings (`dict`): Settings it was made with; empty if there are none beside it.
    """

    folder: Path
    results: dict[str, dict]
    samples: list[dict]
    settings: dict[str, Any]


def find_evaluation(run: Run, name: str | None) -> Evaluation | None:
    """
    The evaluation in the folder of a run.

    Args:
        run ([`~report.runs.Run`]): The run; a sentence about evaluations that are not taken goes to its notes.
        name (`str`, *optional*): Subfolder of the evaluation. Without it, that is `evaluation`, or else the only one.

    Raises:
        `ValueError`: if its files are damaged.
    """
    places = [run.path / name] if name else [run.path / DEFAULT, run.path, *sorted(run.path.glob("*/"))]
    begun = [folder for folder in dict.fromkeys(places) if (folder / COMPLETIONS).is_file()]
    found = [folder for folder in begun if (folder / RESULTS).is_file()]
    if len(found) > 1 and found[0] != run.path / DEFAULT:
        names = ", ".join(folder.name for folder in found)
        run.notes.append(f"{run.path} holds several evaluations ({names}): choose one with --evaluation.")
        return None
    if not found:
        if name:
            run.notes.append(f"{run.path} has no finished evaluation in a folder {name!r}.")
        elif begun:
            run.notes.append(
                f"{begun[0]} holds an evaluation that is not finished: the same trl-fork evaluate command goes on."
            )
        return None
    return _read(found[0], run)


def _read(folder: Path, run: Run) -> Evaluation:
    results, settings = (_json(folder / file) for file in (RESULTS, "settings.json"))
    samples = read_completions(folder / COMPLETIONS)
    for number, row in enumerate(samples, start=1):
        if missing := [field for field in (*FIELDS[:4], "solution", "correct") if field not in row]:
            raise ValueError(
                f"{folder / COMPLETIONS}, line {number}, has no {', '.join(missing)}: it was not written by trl-fork "
                "evaluate. Choose another evaluation with --evaluation."
            )
    settings = settings.get("settings") or {}
    model = settings.get("model")
    if model and Path(str(model)).resolve() != run.path.resolve():
        run.notes.append(f"The evaluation in {folder} is of {model}.")
    elif (settings.get("weights") or {}).get("model") not in (None, weights_fingerprint(run.path)):
        run.notes.append(
            f"The evaluation in {folder} is of earlier weights of this run: evaluate it again, with another --output."
        )
    return Evaluation(folder, results, samples, settings)


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): give the command that wrote it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object: it was not written by trl-fork evaluate.")
    return content


def results_of(label: str, evaluation: Evaluation) -> list[dict]:
    """One row per data set: accuracy by itself, with its standard error over problems."""
    rows = []
    for dataset, result in evaluation.results.items():
        k = result["num_samples"]
        rows.append(
            {
                "run": label,
                "evaluation": str(evaluation.folder),
                "dataset": dataset,
                "label": dataset_label(dataset),
                "num_problems": result["num_problems"],
                "num_samples": k,
                "accuracy": result[f"avg@{k}"],
                "standard_error": result[f"avg@{k}_stderr"],
                "pass_at_k": result[f"pass@{k}"],
                "mean_length": result["mean_length"],
                "truncated_fraction": result["truncated_fraction"],
            }
        )
    return rows


def differences_of(labels: tuple[str, str], first: Evaluation, other: Evaluation) -> list[dict]:
    """One row per data set of the two: the accuracy of the other minus that of the first, or why there is none."""
    names = [name for name in {**first.settings, **other.settings} if name not in _NO_MATTER]
    changed = {
        name: [first.settings.get(name), other.settings.get(name)]
        for name in names
        if first.settings.get(name) != other.settings.get(name)
    }
    rows = []
    for pair in pair_datasets(first.samples, other.samples):
        found = pair.difference
        rows.append(
            {
                "baseline": labels[0],
                "run": labels[1],
                "datasets": [pair.dataset_a, pair.dataset_b],
                "labels": [dataset_label(name) for name in (pair.dataset_a, pair.dataset_b) if name is not None],
                "num_problems": found.num_problems if found else 0,
                "mean": found and found.mean,
                "low": found and found.low,
                "high": found and found.high,
                "refused": pair.refused,
                "other_settings": changed if found else {},
                "other_prompts": pair.other_prompts,
            }
        )
    return rows

"""The numbers of a report: what its page, its tables on the console and `report.json` show."""

import argparse
import math
from pathlib import Path

from ..report.run_curves import Overlay
from ..report.runs import SETTINGS, STEP_TIME, Run, differences
from .corpus import short_names, without_nan
from .report_evaluations import Evaluation, differences_of, results_of
from .report_tokens import token_changes


def label_of(number: int) -> str:
    """A, B, … Z, A2, B2, …"""
    return chr(ord("A") + number % 26) + (str(number // 26 + 1) if number >= 26 else "")


def collect(
    runs: list[Run],
    evaluations: list[Evaluation | None],
    drawn: list[Overlay],
    output: Path,
    options: argparse.Namespace,
) -> dict:
    """
    Everything that the report says, as JSON has it.

    Args:
        runs (`list[Run]`): The runs; the first is what the others are compared with.
        evaluations (`list[Evaluation]`): The evaluation of each, or `None`.
        drawn (`list[Overlay]`): Their curves.
        output (`Path`): Folder of the report, which keeps scores.
        options (`argparse.Namespace`): Options of the command.
    """
    labels = [label_of(number) for number in range(len(runs))]
    names = short_names([str(run.path) for run in runs])
    evaluated = [(label, found) for label, found in zip(labels, evaluations, strict=True) if found is not None]
    accuracy = []
    if evaluations[0] is not None:
        for label, found in evaluated[1:]:
            accuracy += differences_of((labels[0], label), evaluations[0], found)
    tokens = [
        {**row, "baseline": labels[0], "run": labels[row["run"]]} for row in token_changes(runs, output, options)
    ]
    numbers = {
        "runs": [
            {
                "label": label,
                "name": names[str(run.path)],
                "path": str(run.path),
                "progress": run.progress,
                "step": run.step,
                "max_steps": run.max_steps,
                "speed": run.speed,
            }
            for label, run in zip(labels, runs, strict=True)
        ],
        "settings": [
            {"name": name, "values": values}
            for name, values in (differences(runs) if len(runs) > 1 else _own(runs[0]))
        ],
        "metrics": [_metric(overlay) for overlay in drawn],
        "results": [row for label, found in evaluated for row in results_of(label, found)],
        "differences": accuracy,
        "tokens": tokens,
        "notes": [note for run in runs for note in run.notes] + _notes(labels, runs, evaluations, drawn),
        "curves": {
            overlay.panel.key: [
                {"steps": steps, "values": list(map(_json_number, values))} for steps, values in overlay.curves
            ]
            for overlay in drawn
        },
    }
    return without_nan(numbers)


def _own(run: Run) -> list[tuple[str, list]]:
    """Options of a single run that are not at their default."""
    return [(name, [(run.settings or {}).get(name)]) for name in run.changed or ()]


def _metric(overlay: Overlay) -> dict:
    """The values at the last step that all runs with this metric have logged, and the last value of each."""
    panel, curves = overlay.panel, [dict(zip(steps, values, strict=True)) for steps, values in overlay.curves]
    common = set.intersection(*(set(curve) for curve in curves if curve))
    step = max(common, default=None)
    return {
        "key": panel.key,
        "title": panel.title,
        "unit": panel.unit,
        "step": step,
        "values": [None if step is None else _json_number(curve.get(step)) for curve in curves],
        "last": [
            {"step": max(curve), "value": _json_number(curve[max(curve)])} if curve else None for curve in curves
        ],
    }


def _json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _notes(labels: list[str], runs: list[Run], evaluations: list, drawn: list[Overlay]) -> list[str]:
    notes = []
    trained = [run for run in runs if run.step is not None]
    if len(trained) > 1 and drawn:
        common = set.intersection(*({int(entry["step"]) for entry in run.log if "loss" in entry} for run in trained))
        if not common:
            spans = ", ".join(
                f"{label} {min(steps)} to {max(steps)}" if steps else f"{label} none"
                for label, run in zip(labels, runs, strict=True)
                if run.step is not None
                for steps in [[int(entry["step"]) for entry in run.log if "loss" in entry]]
            )
            notes.append(
                f"The runs have logged no step in common (steps {spans}), so that there are no values at the same "
                "step. The same logging_steps gives some."
            )
    if evaluations[0] is None and any(evaluations):
        notes.append(f"{labels[0]} has no evaluation, so that the accuracy of the others is compared with none.")
    for label, run in zip(labels, runs, strict=True):
        if run.step is not None and run.settings is None:
            notes.append(
                f"The settings of {label} are not known: {run.path} holds neither {SETTINGS} nor training_args.bin, "
                "which are there from the start of a run of trl-fork train, and after its first checkpoint."
            )
        if run.step is not None and not any(STEP_TIME in entry for entry in run.log):
            notes.append(f"{label} has logged no times: it was not trained with this package, or has no log yet.")
    return notes

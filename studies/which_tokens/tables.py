"""The tables of the study, in Markdown."""

from contextlib import suppress

import numpy as np

from .grid import CONFIRMED_ARMS, MAIN_ARMS, SETTINGS, UPDATES_PER_BATCH, VARIANTS, VARIANTS_TASK, tuning_cells
from .outcomes import (
    Comparison,
    Interval,
    Study,
    area_under_curve,
    common_comparisons,
    gradient_points,
    interval,
    selected_tokens,
)
from .settings import SAMPLES_PER_PROBLEM


LABELS = {
    "all": "all tokens",
    "top20": "top 20 %",
    "random20": "random 20 %",
    "bottom80": "bottom 80 %",
    "top10": "top 10 %",
    "top50": "top 50 %",
    "top20-local": "top 20 %, scope `local`",
    "top20-sequence": "top 20 %, scope `sequence`",
    "top20-denominator-all": "top 20 %, divided by all tokens",
    "random20-denominator-all": "random 20 %, divided by all tokens",
}
TASK_LABELS = {"digit_sums": "digit sums", "reach_target": "reach the target"}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tuning_table(study: Study) -> str:
    rates = sorted({cell.learning_rate for cell in tuning_cells(study.size)})
    rows = []
    for (task, updates), chosen in study.learning_rates.items():
        values = [
            np.mean(
                [
                    study.by_cell[cell]["accuracy"]
                    for cell in tuning_cells(study.size)
                    if (cell.task, cell.updates_per_batch, cell.learning_rate) == (task, updates, rate)
                ]
            )
            for rate in rates
        ]
        rows.append(
            [
                f"{TASK_LABELS[task]}, {regime(updates)}",
                *(f"**{v:.3f}**" if r == chosen else f"{v:.3f}" for v, r in zip(values, rates, strict=True)),
            ]
        )
    return markdown(["", *(f"{rate:g}" for rate in rates)], rows)


def regime(updates: int) -> str:
    return f"{updates} update{'s' if updates > 1 else ''} per batch"


def arms_table(study: Study, task: str, updates: int, arms=MAIN_ARMS) -> str:
    start = study.starts[task]
    rows = [
        ["before training", "-"]
        + [f"{start[name]:.3f}" for name in ("accuracy", f"pass@{SAMPLES_PER_PROBLEM}", "greedy_accuracy")]
        + ["-", f"{start['entropy']:.3f}", f"{start['length']:.1f}", "-", "-", "-", "-"]
    ]
    for arm in arms:
        runs = list(study.runs(task, updates, arm).values())
        if not runs:
            continue

        def mean(values, spec):
            return f"{np.mean(values):{spec}}"

        rows.append(
            [
                LABELS[arm],
                str(len(runs)),
                f"{interval([row['accuracy'] for row in runs]):.3f}",
                f"{interval([row[f'pass@{SAMPLES_PER_PROBLEM}'] for row in runs]):.3f}",
                mean([row["greedy_accuracy"] for row in runs], ".3f"),
                f"{interval([area_under_curve(row) for row in runs]):.3f}",
                mean([row["entropy"] for row in runs], ".3f"),
                mean([row["length"] for row in runs], ".1f"),
                mean([np.median(row["training"]["grad_norm"]) for row in runs], ".2f"),
                f"{max(max(row['training']['grad_norm']) for row in runs):.0f}",
                f"{selected_tokens(runs):,.0f}",
                mean([row["processor_seconds"] for row in runs], ".0f"),
            ]
        )
    header = [
        *("Arm", "seeds", "accuracy", f"pass@{SAMPLES_PER_PROBLEM}", "greedy", "area under curve"),
        *("entropy", "length", "gradient norm", "largest", "tokens selected", "processor s"),
    ]
    return markdown(header, rows)


def comparison_table(found: list[Comparison], pooled: list[Interval | None] | None = None) -> str:
    """One comparison a row; with `pooled` a last column of the difference over all seeds."""
    rows = [
        [
            f"{LABELS[row.first]} minus {LABELS[row.second]}",
            TASK_LABELS[row.task],
            str(row.updates),
            f"{row.difference:+.3f}",
            p_value(row.difference.p),
            p_value(row.p),
            str(row.difference.n),
        ]
        for row in found
    ]
    header = ["Held-out accuracy", "task", "updates per batch", "difference", "p", "p (Holm)", "seeds"]
    if pooled is not None:
        header.append("with seeds 0 to 4")
        rows = [
            [*row, "" if all_seeds is None else f"{all_seeds:+.3f}"]
            for row, all_seeds in zip(rows, pooled, strict=True)
        ]
    return markdown(header, rows)


def common_comparison_table(study: Study) -> str:
    found = common_comparisons(study)
    return comparison_table(found, [study.pooled_difference(c.task, c.updates, c.first, c.second) for c in found])


def rates_table(study: Study, runs, arms=CONFIRMED_ARMS, settings=SETTINGS) -> str:
    """Accuracy of arms, with the learning rate that each has."""
    rows = []
    for task, updates in settings:
        row = [f"{TASK_LABELS[task]}, {regime(updates)}"]
        for arm in arms:
            found = list(runs(study, task, updates, arm).values())
            row.append(f"{interval([run['accuracy'] for run in found]):.3f} at {found[0]['learning_rate']:g}")
        rows.append(row)
    return markdown(["", *(LABELS[arm] for arm in arms)], rows)


def p_value(p: float) -> str:
    if np.isnan(p):  # no spread, or one run
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def sweep_table(study: Study) -> str:
    tried = {}
    for task, updates in SETTINGS:
        for arm in MAIN_ARMS:
            with suppress(ValueError):  # not swept yet
                tried[f"{TASK_LABELS[task]}, {regime(updates)}: {LABELS[arm]}"] = study.sweep(task, updates, arm)
    factors = sorted({factor for means in tried.values() for factor in means})
    rows = []
    for label, means in tried.items():
        best = max(means.values())
        cells = [f"{means[f]:.3f}" if f in means else "" for f in factors]
        rows.append([label, *(f"**{c}**" if means.get(f) == best else c for f, c in zip(factors, cells, strict=True))])
    return markdown(["Held-out accuracy", *(f"{factor:g} x" for factor in factors)], rows)


def variants_table(study: Study) -> str:
    rows = []
    for updates in UPDATES_PER_BATCH:
        for arm in VARIANTS:
            base = arm.split("-")[0]
            runs = study.runs(VARIANTS_TASK, updates, arm)
            if not runs:
                continue
            difference = study.difference(VARIANTS_TASK, updates, arm, base)
            rows.append(
                [
                    f"{LABELS[arm]}, {regime(updates)}",
                    str(len(runs)),
                    f"{interval([row['accuracy'] for row in runs.values()]):.3f}",
                    f"{difference:+.3f}",
                    p_value(difference.p),
                    f"{np.mean([np.median(row['training']['grad_norm']) for row in runs.values()]):.2f}",
                ]
            )
    return markdown(["Variant", "seeds", "accuracy", "minus the main arm", "p", "gradient norm"], rows)


def gradient_table(study: Study) -> str:
    """Averages over training, tasks apart, of the arm on all tokens."""
    rows = []
    for task, updates in SETTINGS:
        points = gradient_points(study, task, updates)
        if not points:
            continue
        for name in ("top20", "random20", "bottom80"):
            measures = [f"{measure}/{name}" for measure in ("norm", "cosine", "agreement")]
            means = [np.mean([point[key] for point in points]) for key in (*measures, "agreement/all")]
            label = f"{TASK_LABELS[task]}, {regime(updates)}: {LABELS[name]}"
            rows.append([label, *(f"{mean:.2f}" for mean in means)])
    return markdown(["Part of the gradient", "norm", "cosine", "cosine, other batch", "all tokens, other batch"], rows)

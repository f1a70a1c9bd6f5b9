"""The figures of the study."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trl_fork.analysis.statistics import TRACE_LEVELS

from .grid import LONG_ARMS, LONG_SETTINGS, MAIN_ARMS, SETTINGS
from .outcomes import Study, gradient_points
from .tables import LABELS, TASK_LABELS, regime


# Okabe and Ito: told apart by colour-blind readers. Dashes for the shares of the ratio sweep.
STYLES = {
    "all": ("#000000", "-"),
    "top20": ("#D55E00", "-"),
    "random20": ("#0072B2", "-"),
    "bottom80": ("#009E73", "-"),
    "top10": ("#E69F00", "--"),
    "top50": ("#CC79A7", "--"),
}


def save_plots(study: Study, directory: Path) -> None:
    """Write every figure of the page as PNG."""
    figures = {
        "accuracy": over_training(study, "accuracy", "held-out accuracy"),
        "entropy": over_training(study, "entropy", "entropy of held-out samples (nats)"),
        "change": entropy_change(study),
        "percentiles": percentiles(study),
        "gradient": gradient(study),
    }
    if study.is_complete("long"):
        long = LONG_SETTINGS, LONG_ARMS, Study.long_runs
        figures["long"] = over_training(study, "accuracy", "held-out accuracy", *long)
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.png", dpi=90)


def panels(settings=SETTINGS, height: float = 3.2):
    """One panel per task and regime, two in a row."""
    rows = len(settings) // 2
    figure = Figure(figsize=(11, height * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
    axes_of = dict(zip(settings, grid.flat, strict=True))
    for (task, updates), axes in axes_of.items():
        axes.set_title(f"{TASK_LABELS[task]}, {regime(updates)}", fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, axes_of


def over_training(
    study: Study, measure: str, label: str, settings=SETTINGS, arms=MAIN_ARMS, runs_of=Study.runs
) -> Figure:
    """Figure 7 of the paper: one curve per arm, mean over seeds, band of one standard error."""
    figure, axes_of = panels(settings)
    for (task, updates), axes in axes_of.items():
        for arm in arms:
            runs = list(runs_of(study, task, updates, arm).values())
            if not runs:
                continue
            steps = [point["step"] for point in runs[0]["evaluations"]]
            values = np.array([[point[measure] for point in row["evaluations"]] for row in runs])
            mean, error = values.mean(0), values.std(0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else 0.0
            color, line = STYLES[arm]
            axes.plot(steps, mean, line, color=color, label=LABELS[arm], linewidth=1.6)
            axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
        axes.set_ylabel(label, fontsize=9)
    _finish(figure, axes_of, "optimizer steps")
    return figure


def entropy_change(study: Study) -> Figure:
    """Figure 4 of the paper: change of entropy by percentile of the start, on the final model's responses."""
    figure, axes_of = panels()
    for (task, updates), axes in axes_of.items():
        for arm in MAIN_ARMS:
            runs = list(study.runs(task, updates, arm).values())
            if runs:
                changes = np.mean([row["entropy_change"] for row in runs], axis=0)
                color, line = STYLES[arm]
                axes.plot(np.arange(len(changes)) * 5 + 2.5, changes, line, color=color, label=LABELS[arm])
        axes.axhline(0, color="#595959", linewidth=0.8)
        axes.set_yscale("symlog", linthresh=1e-2)
        axes.set_ylabel("change of entropy (nats)", fontsize=9)
    _finish(figure, axes_of, "percentile of the entropy before training")
    return figure


def percentiles(study: Study) -> Figure:
    """Figure 5 of the paper: percentiles of the entropy over training, for all tokens and the top 20 %."""
    figure, axes_of = panels()
    shown = [level for level in TRACE_LEVELS if level in (0.5, 0.8, 0.9, 0.95)]
    for (task, updates), axes in axes_of.items():
        for arm, line in (("all", "-"), ("top20", "--")):
            runs = list(study.runs(task, updates, arm).values())
            if not runs:
                continue
            steps = [point["step"] for point in runs[0]["evaluations"]]
            traces = np.mean([[point["entropy_percentiles"] for point in row["evaluations"]] for row in runs], axis=0)
            for number, level in enumerate(shown):
                axes.plot(
                    steps,
                    traces[:, TRACE_LEVELS.index(level)],
                    line,
                    color=("#0072B2", "#E69F00", "#D55E00", "#000000")[number],
                    label=f"{100 * level:g} %, {LABELS[arm]}",
                )
        axes.set_ylabel("percentile of entropy (nats)", fontsize=9)
    _finish(figure, axes_of, "optimizer steps")
    return figure


def gradient(study: Study) -> Figure:
    """Norm and cosine of the parts of the gradient of all tokens, over training."""
    figure, axes_of = panels()
    for (task, updates), axes in axes_of.items():
        points = gradient_points(study, task, updates)
        steps = sorted({point["step"] for point in points})
        for name in ("top20", "random20", "bottom80"):
            for measure, line in (("norm", "-"), ("cosine", ":")):
                means = [np.mean([p[f"{measure}/{name}"] for p in points if p["step"] == step]) for step in steps]
                axes.plot(steps, means, line, color=STYLES[name][0], label=f"{measure}, {LABELS[name]}")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_ylabel("of the gradient of all tokens", fontsize=9)
    _finish(figure, axes_of, "optimizer steps")
    return figure


def _finish(figure: Figure, axes_of: dict, xlabel: str) -> None:
    axes = list(axes_of.values())
    for bottom in axes[-2:]:
        bottom.set_xlabel(xlabel, fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6 if len(labels) <= 6 else 4, fontsize=8)

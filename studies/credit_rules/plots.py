"""The figures of the study."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from studies.which_tokens.outcomes import interval

from .outcomes import CURVE_STEPS, Study
from .plan import BATCH_ARMS, BATCH_TASKS, MAIN_ARMS, SETTINGS
from .tables import LABELS, TASK_LABELS, setting_label


# Okabe and Ito: told apart by colour-blind readers. A rule and its twin have one colour, the twin dashes.
STYLES = {
    "all": ("#000000", "-"),
    "forking": ("#D55E00", "-"),
    "random": ("#D55E00", "--"),
    "temporal_forking": ("#0072B2", "-"),
    "temporal_random": ("#0072B2", "--"),
    "temporal_position": ("#0072B2", ":"),
    "high_entropy_rollouts": ("#009E73", "-"),
    "random_rollouts": ("#009E73", "--"),
    "pepo": ("#CC79A7", "-"),
    "entropy_advantage": ("#CC79A7", ":"),
    "gmts": ("#E69F00", "-"),
    "local_forking": ("#E69F00", ":"),
    "nat": ("#56B4E9", "-"),
    "stapo": ("#7F7F7F", "-"),
}


def save_plots(study: Study, directory: Path) -> None:
    """Write the figures of the page as PNG, those that there are runs for."""
    entropy_curves(study).savefig(directory / "rules_entropy.png", dpi=90)
    if figure := batch_sizes(study):
        figure.savefig(directory / "rules_batch.png", dpi=90)


def entropy_curves(study: Study) -> Figure:
    """Entropy of held-out samples over training, mean over seeds, one panel per setting."""
    settings = [each for each in SETTINGS if any(study.shared(each, arm) for arm in MAIN_ARMS)]
    rows = -(-len(settings) // 2)
    figure = Figure(figsize=(11, 2.8 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes in grid.flat[len(settings) :]:
        axes.set_visible(False)
    for setting, axes in zip(settings, grid.flat, strict=False):
        axes.set_title(setting_label(setting), fontsize=10, loc="left")
        for arm in MAIN_ARMS:
            curves = [study.curve(row, "entropy") for row in study.shared(setting, arm).values()]
            if curves:
                color, line = STYLES[arm]
                axes.plot(CURVE_STEPS, np.mean(curves, axis=0), line, color=color, label=LABELS[arm], linewidth=1.2)
        axes.set_ylabel("entropy (nats)", fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def batch_sizes(study: Study) -> Figure | None:
    """Accuracy by size of the batch, one panel per task; `None` without such runs."""
    factors = {task: study.batch_factors(task) for task in BATCH_TASKS}
    tasks = [task for task in BATCH_TASKS if len(factors[task]) > 1]
    if not tasks:
        return None
    figure = Figure(figsize=(5.5 * len(tasks), 3.6), layout="constrained")
    for task, axes in zip(tasks, figure.subplots(1, len(tasks), squeeze=False).flat, strict=True):
        for arm in BATCH_ARMS:
            color, line = STYLES[arm]
            found = [
                interval([row["accuracy"] for row in study.shared((task, 1), arm, factor).values()])
                for factor in factors[task]
            ]
            axes.errorbar(
                [64 * factor for factor in factors[task]],
                [each.mean for each in found],
                [0 if np.isnan(each.half_width) else each.half_width for each in found],
                fmt=line,
                marker="o",
                markersize=4,
                color=color,
                label=LABELS[arm],
                elinewidth=0.8,
            )
        axes.set_xscale("log", base=4)
        axes.set_xticks([64 * factor for factor in factors[task]], [str(64 * factor) for factor in factors[task]])
        axes.set_title(TASK_LABELS[task], fontsize=10, loc="left")
        axes.set_xlabel("rollouts per update", fontsize=9)
        axes.set_ylabel("held-out accuracy", fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    return figure

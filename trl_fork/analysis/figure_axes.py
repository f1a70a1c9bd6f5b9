"""Axes, legends and ticks that the figures of an analysis share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..report.palette import GREY


BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def new_figure(title: str, x_label: str, y_label: str, names: Sequence[str] = ()):
    figure, (axes,) = new_figures(title, (1, 1), names=names)
    axes.set_xlabel(x_label, fontsize=9, color=GREY)
    axes.set_ylabel(y_label, fontsize=9, color=GREY)
    return figure, axes


def new_figures(title: str, shape: tuple[int, int], names: Sequence[str] = ()):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = shape
    size = (7.2, 4.2) if rows * columns == 1 else (3.4 * columns, 2.3 * rows + 0.5) if columns > 1 else (7.2, 5.6)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # pyplot's backend and open figures belong to the caller
    figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=bool(names)).flat)
    for axes in panels:
        axes.tick_params(labelsize=9, colors=GREY)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if names:
            name_ticks(axes, names)
    return figure, panels


def name_ticks(axes, names: Sequence[str]) -> None:
    """Write at most a dozen names, the first and the last among them."""
    shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), 12)).astype(int))
    labels = [plain_label(names[place], 24) for place in shown]
    is_long = max(map(len, labels)) * len(labels) > 60 or max(map(len, labels)) > 10
    axes.set_xticks(
        shown, labels, rotation=30 if is_long else 0, ha="right" if is_long else "center", parse_math=False
    )
    axes.set_xlim(-0.3, len(names) - 0.7)


def add_legend(figure) -> None:
    """Draw the legend below the axes, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        columns = 2 if max(map(len, labels)) > 20 else 4
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, labelcolor=GREY
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def plain_label(text: str, longest: int = 36) -> str:
    return text if len(text) <= longest else "…" + text[1 - longest :]

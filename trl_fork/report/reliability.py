"""The reliability diagram of forecasts as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .curves import require_matplotlib
from .palette import BLUE, GREY, ORANGE, SKY, VERMILION


MARKS = ((GREY, "o"), (BLUE, "s"), (VERMILION, "^"), (ORANGE, "D"), (SKY, "v"))


def plot_reliability(forecasters: Mapping[str, Sequence], path: str | Path) -> None:
    """
    Draw rates of the outcome over the forecasts. Perfect calibration is the diagonal.

    Args:
        forecasters (`dict[str, list]`):
            Bins of each forecaster by its name, with the attributes of [`~evaluation.ReliabilityBin`]. The area of a
            mark grows with the bin's share of the forecasts. Lines leave out bins with less than 1 % of them.
        path (`str` or `Path`):
            Path of the picture; its suffix is its format.

    Raises:
        `ImportError`: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # pyplot's backend and open figures belong to the caller
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1.5, zorder=0)
    for (name, bins), (colour, marker) in zip(forecasters.items(), _cycle(len(forecasters)), strict=True):
        total = sum(b.count for b in bins)
        large = [b for b in bins if b.count >= 0.01 * total]
        axes.plot([b.forecast for b in large], [b.rate for b in large], color=colour, linewidth=1.4, alpha=0.7)
        areas = [6 + 300 * b.count / total for b in bins]
        axes.scatter(
            [b.forecast for b in bins],
            [b.rate for b in bins],
            areas,
            color=colour,
            marker=marker,
            label=name,
            zorder=3,
        )
    axes.set_xlabel("mean forecast of the bin", fontsize=10, color=GREY)
    axes.set_ylabel("rate of the outcome", fontsize=10, color=GREY)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, fontsize=9, loc="upper left")
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    figure.savefig(path)


def _cycle(number: int) -> list[tuple[str, str]]:
    return [MARKS[index % len(MARKS)] for index in range(number)]

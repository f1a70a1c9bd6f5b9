"""Figures of forks per loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report.palette import BLUE, GREY, VERMILION
from .figure_axes import add_legend, new_figure, new_figures


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_loops(summary: dict) -> Figure:
    """Entropies after each loop, and the positions of largest entropy that it shares with the last."""
    rows, fraction = summary["loops"], summary["fraction"]
    numbers = [row["loop"] for row in rows]
    figure, (left, right) = new_figures("Loops", (1, 2))
    for key, label, colour, style, marker in (
        ("mean_entropy", "mean", BLUE, "-", "o"),
        ("p95", "95th percentile", GREY, ":", "^"),
        ("p80", "80th percentile", VERMILION, "--", "s"),
        ("p50", "median", GREY, "-", "."),
    ):
        left.plot(
            numbers,
            [row[key] for row in rows],
            color=colour,
            linestyle=style,
            marker=marker,
            markersize=4,
            label=label,
        )
    left.set_ylim(bottom=0)
    left.set_ylabel("entropy (nats)", fontsize=9, color=GREY)
    for pool, style, words in (("whole_set", "-", "overlap, whole set"), ("per_response", ":", "per response")):
        values = [100 * row["overlap_with_last"][pool] for row in rows]
        right.plot(numbers, values, color=BLUE, linestyle=style, marker="o", markersize=4, label=words)
    right.axhline(100 * fraction, color=GREY, linewidth=0.8, linestyle="--")
    right.annotate("by chance", (numbers[0], 100 * fraction), xytext=(0, 3), textcoords="offset points", fontsize=8)
    right.set_ylim(0, 103)
    right.set_ylabel(f"top {fraction:.0%} shared with the last loop (%)", fontsize=9, color=GREY)
    right.legend(fontsize=8, frameon=False, labelcolor=GREY, loc="lower right")
    for axes in (left, right):
        axes.set_xticks(numbers)
        axes.set_xlabel("loop", fontsize=9, color=GREY)
    add_legend(figure)
    return figure


def plot_exit_depth(summary: dict) -> Figure:
    """Expected number of loops by the entropy after the last, in bins of equal count."""
    bins, num_loops = summary["exit"]["bins"], len(summary["loops"])
    figure, axes = new_figure("Exit depth", "mean entropy of the bin, after the last loop (nats)", "expected loops")
    axes.plot([part["mean_entropy"] for part in bins], [part["mean_depth"] for part in bins], color=BLUE, marker="o")
    correlation = summary["exit"]["spearman_with_entropy"]["last_loop"]
    words = "undefined, as one of the two is constant" if correlation is None else f"{correlation:.2f}"
    axes.set_title(f"rank correlation over tokens: {words}", fontsize=9, loc="left", color=GREY)
    axes.set_ylim(1, num_loops)
    axes.set_xlim(left=0)
    return figure

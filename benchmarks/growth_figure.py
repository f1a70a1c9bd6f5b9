"""The figure and the table of `growth.py`."""

import math
from itertools import pairwise

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator

from trl_fork.report.palette import BLUE, GREY, VERMILION


TITLES = {
    "length": ("longest completion, tokens", "8 completions, long tail"),
    "rows": ("completions", "at most 256 tokens, long tail"),
    "processes": ("processes", "64 completions of at most 256 tokens"),
}
LINES = {
    ("TRL", "whole"): (VERMILION, "-", "o"),
    ("TRL", "training"): (VERMILION, "--", "s"),
    ("ours", "whole"): (BLUE, "-", "o"),
    ("ours", "training"): (BLUE, "--", "s"),
}


def of_axis(points, axis, arm, part):
    """Values and seconds of one line."""
    found = [point for point in points if point["axis"] == axis and arm in point["arms"]]
    return [point["value"] for point in found], [point["arms"][arm][part] for point in found]


def exponents(values, seconds):
    """Of growth between neighbours: 1 is linear, 2 quadratic."""
    pairs = pairwise(zip(values, seconds, strict=True))
    return [math.log(t / s) / math.log(w / v) for (v, s), (w, t) in pairs]


def draw(points, path):
    axes_here = [axis for axis in TITLES if any(point["axis"] == axis for point in points)]
    figure, panels = pyplot.subplots(1, len(axes_here), figsize=(4 * len(axes_here), 3.6), squeeze=False)
    for panel, axis in zip(panels[0], axes_here, strict=True):
        values = sorted({point["value"] for point in points if point["axis"] == axis})
        for (arm, part), (colour, style, marker) in LINES.items():
            x, y = of_axis(points, axis, arm, part)
            label = f"{arm}, {'whole step' if part == 'whole' else 'training phase'}"
            panel.plot(x, y, style, color=colour, marker=marker, markersize=4, label=label)
        x, y = of_axis(points, axis, "ours", "whole")
        power = -1 if axis == "processes" else 1
        panel.plot(x, [y[0] * (v / x[0]) ** power for v in x], ":", color=GREY, label="in proportion")
        panel.set(xscale="log", yscale="log", xlabel=TITLES[axis][0], title=TITLES[axis][1])
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.minorticks_off()
        panel.title.set_fontsize(10)
        panel.grid(color=GREY, alpha=0.2)
    panels[0][0].set_ylabel("seconds of a step")
    panels[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def markdown_table(points):
    """Seconds, and the exponent of growth from the point before."""
    lines = [
        "| | Tokens | TRL, whole | TRL, training phase | Ours, whole | Ours, training phase |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for axis in TITLES:
        grown = {}
        for line in LINES:
            values, seconds = of_axis(points, axis, *line)
            powers = [None, *exponents(values, seconds)][: len(values)]
            grown[line] = {v: pair for v, *pair in zip(values, seconds, powers, strict=True)}
        for point in [point for point in points if point["axis"] == axis]:
            cells = []
            for line in LINES:
                seconds, exponent = grown[line].get(point["value"], (None, None))
                power = f" (^{exponent:.2f})" if exponent is not None else ""
                cells.append(f"{seconds:.2f}{power}" if seconds is not None else "")
            name = f"{point['value']:,} {TITLES[axis][0].split(',')[0]}"
            name = name.removesuffix("es") if name == "1 processes" else name
            lines.append(f"| {name} | {point['tokens']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

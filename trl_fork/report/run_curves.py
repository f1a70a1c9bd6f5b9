"""The curves of several runs in one picture per metric."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from .curves import EFFECTIVE, PANELS, SELECTED, Panel, _limits, require_matplotlib, weighs_softly
from .palette import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION
from .runs import STEP_TIME, Run


COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, GREY)
_DASHES = ("-", "--", ":")
# Letters and lines that can be read on a white and on a black page, as an image knows nothing of its theme.
_INK, _GRID = "#7f838b", "#9b9fa84d"
_MORE = (
    Panel("Gradient norm", "norm", "grad_norm"),
    Panel("Time of a step", "seconds", STEP_TIME),
    Panel("Speed", "tokens per second", "tokens_per_second"),
)
_ACCURACY = re.compile(r"(eval_)?rewards/(.*accuracy.*)/mean")
_SMOOTHED_FROM = 60  # logged values; below, every one is drawn as it is


class Overlay(NamedTuple):
    """
    One metric of all runs.

    Args:
        panel (`Panel`): Its title, unit and key.
        curves (`list[tuple[list[int], list[float]]]`): Steps and values of each run; empty for one without it.
        window (`int`): Logged values that a smoothed line is the mean of; 1 for none.
        svg (`str`): The picture.
    """

    panel: Panel
    curves: list[tuple[list[int], list[float]]]
    window: int
    svg: str


def overlays(runs: Sequence[Run]) -> list[Overlay]:
    """
    Draw every metric that the log of a run has, all runs in one picture.

    Where a run has logged many values they are pale, and a line shows their running mean. Values that are not finite
    are gaps.

    Raises:
        `ImportError`: without matplotlib.
    """
    require_matplotlib()
    drawn = []
    for number, panel in enumerate(panels_of(runs)):
        curves = [run.curve(panel.key) for run in runs]
        longest = max(len(steps) for steps, _ in curves)
        window = 1 if longest < _SMOOTHED_FROM else max(3, longest // 25)
        drawn.append(Overlay(panel, curves, window, _draw(panel, curves, window, number)))
    return drawn


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The metrics that some run has logged, in the order of the page."""
    keys = list(dict.fromkeys(key for run in runs for entry in run.log for key in entry))
    accuracies = [(key, match) for key in keys if (match := _ACCURACY.fullmatch(key))]
    named = len({match[2] for _, match in accuracies}) > 1  # several rewards judge the answer
    panels = {panel.key: panel for panel in PANELS}
    for key, match in accuracies:
        # The training accuracy of a run without another reward is its reward.
        if key not in panels and (match[1] or any(run.curve(key) != run.curve("reward") for run in runs)):
            title = f"{'Held-out' if match[1] else 'Training'} accuracy{f', {match[2]}' if named else ''}"
            panels[key] = Panel(title, "fraction right", key, is_fraction=True)
    if any(match[1] for _, match in accuracies):
        panels.pop("eval_reward")
    if not any(weighs_softly(entry) for run in runs for entry in run.log):
        panels.pop(EFFECTIVE)
    first = ["reward", *(key for key, _ in accuracies), "entropy", "completions/mean_length", SELECTED]
    order = [key for key in dict.fromkeys([*first, *panels]) if key in panels]
    return [panel for panel in (*(panels[key] for key in order), *_MORE) if panel.key in keys]


def style_of(number: int) -> tuple[str, str]:
    """Colour and line of a run by its number, from 0."""
    return COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Running means over the finite ones of `window` values around each; NaN where there is none."""
    half, means = window // 2, []
    for place in range(len(values)):
        near = [value for value in values[max(0, place - half) : place + half + 1] if math.isfinite(value)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _draw(panel: Panel, curves: list[tuple[list[int], list[float]]], window: int, number: int) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    shown: list[float] = []
    for index, (steps, values) in enumerate(curves):
        colour, dashes = style_of(index)
        finite = [value if math.isfinite(value) and abs(value) < 1e300 else math.nan for value in values]
        shown += [value for value in finite if not math.isnan(value)]
        line = finite
        if window > 1 and len(values) >= window:
            axes.plot(steps, finite, color=colour, linewidth=0.8, alpha=0.3)
            line = smoothed(finite, window)
        marker = "o" if len(steps) < 25 else ""
        width = max(1.2, 2.6 - 0.7 * index)  # a curve below another one can be seen
        axes.plot(steps, line, color=colour, linestyle=dashes, linewidth=width, marker=marker, markersize=2 * width)
    axes.set_ylim(*_limits(shown, panel.is_fraction))
    axes.set_xlim(0, max((steps[-1] for steps, _ in curves if steps), default=1) or 1)
    axes.set_ylabel(panel.unit, fontsize=9, color=_INK)
    axes.set_xlabel("optimizer step", fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(labelsize=9, colors=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    text = io.StringIO()
    # Letters are outlines, the same everywhere. A salt per figure keeps ids on one page apart.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": f"overlay-{number}"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()

"""The curves of a run as a picture."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .palette import BLUE, GREY, VERMILION


SELECTED, EFFECTIVE = "forking/selected_fraction", "credit/effective_fraction"
# Parameters of credit rules that a schedule moves; if several rules have one, its key has the rule's name before it.
_SCHEDULED = re.compile(r"credit/(?:(\w+)_)?(fraction|strength)")


class Panel(NamedTuple):
    """One curve of `training.png`."""

    title: str
    unit: str
    key: str  # key of the log
    colour: str = BLUE
    is_fraction: bool = False


PANELS = (
    Panel("Training reward", "mean reward", "reward"),
    Panel("Held-out accuracy", "fraction right", "eval_rewards/accuracy_reward/mean", VERMILION, True),
    Panel("Held-out reward", "mean reward", "eval_reward", VERMILION),
    Panel("Length of completions", "tokens", "completions/mean_length"),
    Panel("Entropy of the policy", "nats per token", "entropy"),
    Panel("Forking threshold", "nats", "forking/entropy_threshold"),
    Panel("Tokens trained on", "fraction of tokens", SELECTED, is_fraction=True),
    Panel("Effective fraction of tokens", "fraction of tokens", EFFECTIVE, is_fraction=True),
)


def require_matplotlib() -> None:
    """Raise an `ImportError` that says how to get matplotlib. Call it before a long run."""
    if find_spec("matplotlib") is None:
        raise ImportError("training.png needs matplotlib: `pip install matplotlib`.")


def plot_training(log_history: list[dict], path: str | Path) -> None:
    """
    Draw the curves of a run as small multiples over optimizer steps. Values that are not finite are gaps.

    The effective fraction of tokens is drawn where it says more than the fraction of tokens trained on, that is if
    weights other than 0 and 1 are trained with.

    Args:
        log_history (`list[dict]`):
            Log history of `trainer.state`, or of a `trainer_state.json`.
        path (`str` or `Path`):
            Path of the picture; its suffix is its format.

    Raises:
        `ImportError`: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = _curves(log_history)
    columns = min(3, len(curves)) or 1
    rows = -(-len(curves) // columns) or 1
    figure = Figure(figsize=(4.0 * columns, 2.9 * rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # pyplot's backend and open figures belong to the caller
    # A run on all tokens logs none of these. What a rule selects is not in the log: it need not be the forking tokens.
    weighs = any(panel.key.startswith(("forking/", "credit/")) for panel, _, _ in curves)
    title = f"Reinforcement learning{' with token credit' if weighs else ''}"
    figure.suptitle(title, fontsize=14, fontweight="bold")
    if not curves:  # no error, as this comes at the end of a long run
        figure.text(0.5, 0.4, "Nothing was logged.\nLower logging_steps.", ha="center", fontsize=11, color=GREY)
    last_step = max((steps[-1] for _, steps, _ in curves), default=1) or 1
    for index, (panel, steps, values) in enumerate(curves):
        axes = figure.add_subplot(rows, columns, index + 1)
        marker = "o" if len(steps) < 25 else ""
        axes.plot(steps, values, color=panel.colour, marker=marker, markersize=4, linewidth=1.8, clip_on=False)
        finite = [(step, value) for step, value in zip(steps, values, strict=True) if not math.isnan(value)]
        if finite:
            axes.annotate(
                f"{finite[-1][1]:.3g}",
                finite[-1],
                textcoords="offset points",
                xytext=(6, 0),
                va="center",
                fontsize=9,
                color=panel.colour,
            )
        if len(finite) < len(values):
            note = f"{len(values) - len(finite)} of {len(values)} values not finite"
            axes.text(0.02, 0.96, note, transform=axes.transAxes, va="top", fontsize=8, color=GREY)
        axes.set_title(panel.title, fontsize=11, loc="left")
        axes.set_ylabel(panel.unit, fontsize=9, color=GREY)
        axes.set_xlabel("optimizer step", fontsize=9, color=GREY)
        axes.set_xlim(0, last_step * 1.2)  # room for the last value
        axes.set_ylim(*_limits([value for _, value in finite], panel.is_fraction))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(labelsize=9, colors=GREY)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _curves(log_history):
    """(panel, steps, values) of every panel that the log has values for."""
    curves: list[tuple[Panel, tuple[int, ...], tuple[float, ...]]] = []
    scheduled = {key: name for entry in log_history for key, name in scheduled_parameters(entry).items()}
    panels = [Panel(f"Scheduled {name}", name, key, is_fraction=True) for key, name in scheduled.items()]
    for panel in (*PANELS, *panels):
        points = [
            (entry["step"], _finite(entry[panel.key])) for entry in log_history if entry.get(panel.key) is not None
        ]
        is_repeated = (panel.key == "eval_reward" and any(p.title == "Held-out accuracy" for p, _, _ in curves)) or (
            panel.key == EFFECTIVE and not any(map(weighs_softly, log_history))
        )
        if points and not is_repeated:
            steps, values = zip(*points, strict=True)
            curves.append((panel, steps, values))
    return curves


def scheduled_parameters(logs: dict) -> dict[str, str]:
    """The keys of a log that hold parameters of credit rules which change over the training, and their names."""
    found = {key: _SCHEDULED.fullmatch(key) for key in logs if key != EFFECTIVE}
    return {key: f"{m[2]} of {m[1]}" if m[1] else m[2] for key, m in found.items() if m is not None}


def weighs_softly(logs: dict) -> bool:
    """Whether a log is of weights other than 0 and 1, whose effective fraction is below that of tokens with weight."""
    selected, effective = logs.get(SELECTED), logs.get(EFFECTIVE)
    # Means over the same batches, so that for a selection no more than rounding is between them.
    return selected is not None and effective is not None and abs(selected - effective) > 1e-4


def _finite(value) -> float:
    """The value, or NaN (a gap in the curve) if an axis cannot show it."""
    return value if math.isfinite(value) and abs(value) < 1e300 else math.nan


def _limits(values, is_fraction: bool) -> tuple[float, float]:
    if is_fraction and all(0 <= value <= 1 for value in values):
        return 0.0, 1.02
    lowest, highest = min([0.0, *values]), max([0.0, *values])
    margin = 0.08 * (highest - lowest or 1.0)
    return lowest - margin * (lowest < 0), highest + margin

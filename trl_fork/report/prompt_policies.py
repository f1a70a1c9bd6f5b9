"""Policies over prompts as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .palette import BLUE, GREY, ORANGE, SKY, VERMILION


def plot_prompt_policies(
    history: Sequence[Mapping[str, Sequence[float]]],
    equilibrium: Mapping[str, Sequence[float]],
    labels: Mapping[str, Sequence[str]],
    path: str | Path,
) -> None:
    """
    Draw the policy of each role over its prompts by mirror step, with the equilibrium as dashed lines.

    Args:
        history (sequence of `dict[str, sequence of float]`): Probability of each prompt, by role, after each step.
        equilibrium (`dict[str, sequence of float]`): The same of the equilibrium.
        labels (`dict[str, sequence of str]`): Names of the prompts, by role.
        path (`str` or `Path`): Path of the picture; its suffix is its format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(labels), 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # pyplot's backend and open figures belong to the caller
    colours, markers = (BLUE, VERMILION, ORANGE, SKY, GREY), "os^Dv"
    all_axes = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for axes, (role, names) in zip(all_axes, labels.items(), strict=True):
        for number, name in enumerate(names):
            colour = colours[number % len(colours)]
            values = [float(policies[role][number]) for policies in history]
            axes.plot(
                values,
                color=colour,
                marker=markers[number % len(markers)],
                markevery=max(1, len(values) // 8),
                label=name,
                clip_on=False,
            )
            axes.axhline(float(equilibrium[role][number]), color=colour, linestyle="--", linewidth=1)
        axes.set_title(f"{role}: prompts, and the equilibrium (dashed)", fontsize=11, loc="left")
        axes.set_xlabel("mirror steps", fontsize=9, color=GREY)
        axes.set_xlim(0, max(1, len(history) - 1))
        axes.set_ylim(0, 1.02)
        axes.tick_params(labelsize=9, colors=GREY)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, labelcolor=GREY)
    all_axes[0].set_ylabel("probability", fontsize=9, color=GREY)
    figure.savefig(path)

"""Accuracy by number of loops as a picture."""

from pathlib import Path

from .palette import BLUE, GREY, VERMILION


def plot_loop_accuracy(before: list[float], after: list[float], path: str | Path, num_problems: int) -> None:
    """
    Draw the accuracy of a looped model that runs fewer loops, before and after training.

    Args:
        before, after (`list[float]`): Accuracy with 1, 2, ... loops.
        path (`str` or `Path`): Path of the picture; its suffix is its format.
        num_problems (`int`): Problems that each accuracy is a mean over.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # pyplot's backend and open figures belong to the caller
    axes = figure.add_subplot()
    numbers = [*range(1, len(before) + 1)]
    for values, label, colour, style, marker, above in (
        (after, "after RL", VERMILION, "-", "s", True),
        (before, "before", BLUE, "--", "o", False),
    ):
        axes.plot(numbers, values, color=colour, linestyle=style, marker=marker, label=label, clip_on=False)
        for number, value in zip(numbers, values, strict=True):
            axes.annotate(
                f"{value:.3f}",
                (number, value),
                xytext=(0, 7 if above else -13),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=colour,
            )
    axes.set_title(f"Accuracy on {num_problems:,} held-out problems", fontsize=11, loc="left")
    axes.set_xlabel("loops that are run", fontsize=9, color=GREY)
    axes.set_ylabel("fraction right, sampled", fontsize=9, color=GREY)
    axes.set_xticks(numbers)
    axes.set_xlim(0.8, len(before) + 0.2)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelsize=9, colors=GREY)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, labelcolor=GREY)
    figure.savefig(path)

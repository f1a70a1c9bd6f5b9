"""Accuracy and convention of a team over training as a picture."""

import statistics
from pathlib import Path

from .palette import BLUE, GREY, ORANGE, SKY, VERMILION


# Colour and line of each arm.
_STYLES = {
    "policy_gradient": (ORANGE, "-"),
    "policy_gradient_forking": (ORANGE, "--"),
    "balance": (BLUE, "-"),
    "mirror": (VERMILION, "-"),
    "mirror_forking": (VERMILION, "--"),
}
_COMPARED = ("balance", "mirror")  # in the second panel


def plot_conventions(runs: list[dict], path: str | Path, num_problems: int) -> None:
    """
    Draw the joint accuracy of each arm, and the convention of each seed with and without the mirror term.

    Args:
        runs (`list[dict]`):
            One for each seed. `start` and the entries of `arms[name]["history"]`, which have a `step`, hold `left` and
            `right`, the probabilities of the plain code, and `all`, the joint accuracy, where it was measured.
            `equilibrium` holds `left` and `right`.
        path (`str` or `Path`): Path of the picture; its suffix is its format.
        num_problems (`int`): Problems that each accuracy is a mean over.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # pyplot's backend and open figures belong to the caller
    accuracy, convention = figure.subplots(1, 2)
    for arm in runs[0]["arms"]:
        colour, line = _STYLES.get(arm, (SKY, "-"))
        curves = [_curve(run, arm, lambda values: values.get("all")) for run in runs]
        steps = [step for step, _ in curves[0]]
        means = [statistics.mean(value for _, value in points) for points in zip(*curves, strict=True)]
        accuracy.plot(
            steps, means, color=colour, linestyle=line, label=arm.replace("_forking", ", forking").replace("_", " ")
        )
    accuracy.set_title(f"Joint accuracy, {num_problems} held-out problems", fontsize=11, loc="left")
    accuracy.set_ylabel(f"fraction right, mean of {len(runs)} seed{'s' * (len(runs) > 1)}", fontsize=9, color=GREY)
    for arm in _COMPARED:
        colour, line = _STYLES[arm]
        label: str | None = {"mirror": "with the mirror term"}.get(arm, "beta alone")
        for run in runs if arm in runs[0]["arms"] else ():
            points = _curve(run, arm, lambda values: (values["left"] + values["right"]) / 2)
            convention.plot(*zip(*points, strict=True), color=colour, linestyle=line, label=label, linewidth=1.2)
            label = None  # one entry for all seeds
    level = statistics.mean(value for run in runs for value in run["equilibrium"].values())
    convention.axhline(level, color=GREY, linestyle="--", label="equilibrium (HQRE)")
    convention.set_title("Convention, each seed", fontsize=11, loc="left")
    convention.set_ylabel("probability of plain, mean of the roles", fontsize=9, color=GREY)
    for axes in (accuracy, convention):
        axes.set_xlabel("optimizer steps", fontsize=9, color=GREY)
        axes.set_ylim(0, 1.02)
        axes.tick_params(labelsize=9, colors=GREY)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, labelcolor=GREY, loc="lower right")
    figure.savefig(path)


def _curve(run: dict, arm: str, value_of) -> list[tuple[int, float]]:
    points = [{"step": 0, **run["start"]}, *run["arms"][arm]["history"]]
    return [(point["step"], value_of(point)) for point in points if value_of(point) is not None]

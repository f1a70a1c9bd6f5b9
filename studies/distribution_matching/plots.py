"""The figure of the study: diversity against accuracy."""

from matplotlib.figure import Figure

from .outcomes import CONFIGURATIONS, Study
from .tables import label


# Okabe and Ito: told apart by colour-blind readers.
COLORS = {
    "grpo": "#000000",
    "forking": "#D55E00",
    "grpo_kl": "#7F7F7F",
    "balance_group": "#0072B2",
    "balance_offline": "#009E73",
    "balance_group_forking": "#CC79A7",
}
MARKERS = "o^s"  # by the number of the KL coefficient among those of the arm


def trade_off(study: Study) -> Figure:
    """One line per arm and KL coefficient, from the start over the evaluations to the end; bars are 95 % intervals."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    drawn: dict[str, int] = {}
    for arm, beta in CONFIGURATIONS:
        marker = MARKERS[drawn.setdefault(arm, 0)]
        drawn[arm] += 1
        for axes, measure in zip(panels, ("distinct", "agreement"), strict=True):
            x, y = study.curve(arm, beta, "accuracy"), study.curve(arm, beta, measure)
            style = {"color": COLORS[arm], "linewidth": 1.2}
            axes.plot(x, y, "-", marker=".", markersize=3, **style)
            ends = (study.values(arm, beta, name).half_width for name in ("accuracy", measure))
            xerr, yerr = ends
            axes.errorbar(
                x[-1], y[-1], yerr, xerr, marker=marker, markersize=7, label=label(arm, beta), elinewidth=0.8, **style
            )
    for axes, text in zip(
        panels,
        ("distinct right strategies among 16 samples", "probability that two right samples are one strategy"),
        strict=True,
    ):
        axes.set_xlabel("held-out accuracy (avg@1)", fontsize=9)
        axes.set_ylabel(text, fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure

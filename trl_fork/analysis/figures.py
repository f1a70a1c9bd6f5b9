"""Figures of an entropy analysis, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._visible import show_spaces
from ..report.palette import BLUE, GREY, VERMILION
from .figure_axes import BACKGROUND, add_legend, new_figure, new_figures, plain_label


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GROUPS = {"all": (GREY, "-"), "correct": (BLUE, "-"), "incorrect": (VERMILION, "--")}
_SMALLEST_CHANGE = 1e-4  # nats; the paper's axis starts there. Below it the axis is linear.


def save_figure(figure: Figure, directory: str | Path, name: str) -> str:
    """
    Write a figure as `NAME.png` and `NAME.svg`.

    Args:
        figure ([`~matplotlib.figure.Figure`]): The figure.
        directory (`str` or `Path`): An existing folder for the files.
        name (`str`): Their name without suffix.

    Returns:
        `str`: the SVG's text.
    """
    from matplotlib import rc_context

    directory = Path(directory)
    figure.savefig(directory / f"{name}.png", dpi=150)
    text = io.StringIO()
    # Letters are outlines, the same everywhere. A salt per figure keeps ids on one page apart.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    (directory / f"{name}.svg").write_text(text.getvalue())
    return text.getvalue()


def plot_distribution(distribution: dict) -> Figure:
    """Analysis A: histogram of token entropies with counts on a log axis (paper, Fig. 2a)."""
    figure, axes = new_figure(
        "Entropy of tokens", "entropy of the next-token distribution (nats)", "tokens (log axis)"
    )
    edges, counts = distribution["histogram"]["edges"], distribution["histogram"]["counts"]
    axes.stairs(counts, edges, fill=True, color=BLUE)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2.5 * max([*counts, 1]))
    axes.set_xlim(0, edges[-1])
    axes.axvline(distribution["p80"], color=VERMILION, linestyle="--", linewidth=1.8)
    right_half = distribution["p80"] > 0.6 * edges[-1]
    axes.annotate(
        f"80th percentile\n{distribution['p80']:.3f} nats",
        (distribution["p80"], 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right_half else 6, 0),
        textcoords="offset points",
        ha="right" if right_half else "left",
        va="top",
        fontsize=9,
        color=VERMILION,
        bbox=BACKGROUND,
    )
    axes.set_title(
        f"{distribution['fraction_below_0.01']:.1%} of {distribution['num_tokens']:,} tokens are below 0.01 nats",
        fontsize=9,
        loc="left",
        color=GREY,
    )
    return figure


def plot_overlap(overlap: dict) -> Figure:
    """Analysis D: positions of largest entropy in common with the reference and with the model (paper, Table 1)."""
    names = [entry["model"] for entry in overlap["models"]]
    figure, axes = new_figure(
        f"Overlap of the top {overlap['fraction']:.0%} positions", "", "positions in common (%)", names=names
    )
    places = range(len(names))
    lowest = 100.0
    for key, label, colour, marker in (
        ("with_reference", f"with {plain_label(names[0])}", BLUE, "o"),
        ("with_model", f"with {plain_label(names[-1])}", VERMILION, "s"),
    ):
        for pool, style, words in (("whole_set", "-", "whole set"), ("per_response", ":", "per response")):
            values = [100 * entry[key][pool] for entry in overlap["models"]]
            lowest = min(lowest, *values)
            axes.plot(places, values, color=colour, linestyle=style, marker=marker, label=f"{label}, {words}")
    axes.set_ylim(lowest - 0.08 * (100 - lowest) - 0.5, 100.5 + 0.04 * (100 - lowest))
    add_legend(figure)
    return figure


def plot_change(change: list[dict], reference: str, model: str) -> Figure:
    """
    Analysis E: change of entropy by percentile of the reference's entropy (paper, Fig. 4).

    The paper's log axis cannot show a decrease. Here the axis has both signs (linear within 1e-4 nats of 0), and the
    lower panel counts the tokens whose entropy rose and fell.
    """
    figure, (upper, lower) = new_figures("Change of entropy", (2, 1))
    upper.set_title(
        f"from {plain_label(reference)} to {plain_label(model)}", fontsize=9, loc="left", color=GREY, parse_math=False
    )
    centres = [sum(row["percentiles"]) / 2 for row in change]
    width = 0.85 * (change[0]["percentiles"][1] - change[0]["percentiles"][0]) if change else 1
    means = np.array([row["mean_change"] for row in change])
    for sign, label, colour, hatch in ((1, "higher", BLUE, None), (-1, "lower", VERMILION, "///")):
        where = means * sign > 0
        upper.bar(
            np.array(centres)[where],
            means[where],
            width,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=label,
        )
    upper.axhline(0, color=GREY, linewidth=0.8)
    upper.set_yscale("symlog", linthresh=_SMALLEST_CHANGE)
    _label_decades(upper, means)
    upper.set_ylabel("mean change (nats)", fontsize=9, color=GREY)
    add_legend(figure)
    up = np.array([100 * row["fraction_increased"] for row in change])
    down = np.array([100 * row["fraction_decreased"] for row in change])
    lower.bar(centres, up, width, color=BLUE)
    lower.bar(centres, -down, width, color=VERMILION, hatch="///", edgecolor="white", linewidth=0)
    lower.axhline(0, color=GREY, linewidth=0.8)
    lower.set_ylim(-105, 105)
    lower.set_yticks([-100, -50, 0, 50, 100], ["100", "50", "0", "50", "100"])
    lower.set_ylabel("tokens lower | higher (%)", fontsize=9, color=GREY)
    lower.set_xlabel("percentile of the entropy under the reference", fontsize=9, color=GREY)
    for axes in (upper, lower):
        axes.set_xlim(0, 100)
    return figure


def plot_percentiles(percentiles: dict) -> Figure:
    """Analysis F: percentiles of the entropy over checkpoints (paper, Fig. 5)."""
    names = [entry["model"] for entry in percentiles["models"]]
    figure, panels = new_figures("Percentiles of token entropy", (3, 3), names=names)
    for number, (axes, level) in enumerate(zip(panels, percentiles["levels"], strict=True)):
        values = [entry["values"][number] for entry in percentiles["models"]]
        axes.plot(range(len(names)), values, color=BLUE, marker="o", markersize=4, clip_on=False)
        title = {0.0: "smallest", 1.0: "largest"}.get(level, f"{100 * level:g}th percentile")
        axes.set_title(title, fontsize=10, loc="left")
        margin = 0.15 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 0.01
        axes.set_ylim(max(min(values) - margin, -margin / 2), max(values) + margin)
        if number % 3 == 0:
            axes.set_ylabel("nats", fontsize=9, color=GREY)
    return figure


def plot_position(position: dict) -> Figure:
    """Entropy against relative position in the response."""
    figure, axes = new_figure(
        "Entropy along a response", "relative position (0: first token, 1: last)", "nats per token"
    )
    for group, profile in position.items():
        values = np.array([np.nan if v is None else v for v in profile["mean_entropy"]], dtype=float)
        if np.isnan(values).all():
            continue
        colour, style = _GROUPS[group]
        centres = (np.arange(len(values)) + 0.5) / len(values)
        marker = {"all": "", "correct": "o", "incorrect": "s"}[group]
        axes.plot(centres, values, color=colour, linestyle=style, marker=marker, markersize=4, label=group)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    add_legend(figure)
    return figure


def plot_length(lengths: np.ndarray, means: np.ndarray, correct: Sequence[bool | None]) -> Figure:
    """Mean entropy of each response against its length; at most 5,000 of them, evenly spaced."""
    figure, axes = new_figure("Responses", "length (tokens)", "mean entropy (nats)")
    kept = (
        np.unique(np.linspace(0, len(lengths) - 1, min(len(lengths), 5000)).astype(int)).tolist()
        if len(lengths)
        else []
    )
    for value, label, colour, marker in (
        (None, "not graded", GREY, "."),
        (False, "incorrect", VERMILION, "x"),
        (True, "correct", BLUE, "o"),
    ):
        rows = [i for i in kept if correct[i] is value and lengths[i]]
        if rows:
            filled = {"facecolors": "none"} if marker == "o" else {}
            axes.scatter(
                lengths[rows], means[rows], s=16, color=colour, marker=marker, alpha=0.7, label=label, **filled
            )
    axes.set_ylim(bottom=0)
    add_legend(figure)
    return figure


def plot_decoding_temperature(cells: list[dict]) -> Figure:
    """Analysis C: accuracy against either temperature, the other at 1 (paper, Fig. 3)."""
    figure, axes = new_figure("Two decoding temperatures", "temperature; the other one is 1", "accuracy (%)")
    temperatures = sorted({cell[key] for cell in cells for key in ("forking_temperature", "other_temperature")})
    places = {temperature: place for place, temperature in enumerate(temperatures)}  # 0 has no place on a log axis
    for varied, fixed, label, colour, marker, style in (
        ("forking_temperature", "other_temperature", "forking tokens", BLUE, "o", "-"),
        ("other_temperature", "forking_temperature", "all other tokens", VERMILION, "s", "--"),
    ):
        line = sorted((cell for cell in cells if cell[fixed] == 1), key=lambda cell: cell[varied])
        axes.errorbar(
            [places[cell[varied]] for cell in line],
            [100 * cell["accuracy"] for cell in line],
            [100 * (cell["standard_error"] or 0) for cell in line],
            color=colour,
            marker=marker,
            linestyle=style,
            capsize=3,
            label=label,
        )
    axes.set_xticks(range(len(temperatures)), [f"{temperature:g}" for temperature in temperatures])
    axes.set_ylim(bottom=0)
    add_legend(figure)
    return figure


def plot_token_cloud(tokens: list[dict], title: str, *, largest: str) -> Figure | None:
    """
    Analysis B: token types as a word cloud (paper, Fig. 2b and 2c).

    Args:
        tokens (`list[dict]`): Entries of `summary.json` with `token` and `mean_entropy`.
        title (`str`): Title of the figure.
        largest (`str`): Tokens that are written largest: those of `"high"` or of `"low"` mean entropy.

    Returns:
        [`~matplotlib.figure.Figure`], or `None` without the package `wordcloud` or without tokens.
    """
    if find_spec("wordcloud") is None or not tokens:
        return None
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D
    from PIL import ImageFont
    from wordcloud import WordCloud

    means = [entry["mean_entropy"] for entry in tokens]
    # The paper's font size is the mean entropy. If all are near zero, as at the bottom, the rank replaces it.
    sizes = means if largest == "high" else range(len(tokens), 0, -1)
    words: dict[str, float] = {}
    for entry, size in zip(tokens, sizes, strict=True):
        word = visible(entry["token"])
        words[word] = max(words.get(word, 0.0), float(size), 1e-6)
    width, height, font = 1200, 600, findfont("DejaVu Sans")
    cloud = WordCloud(
        width=width,
        height=height,
        font_path=font,
        prefer_horizontal=1.0,
        relative_scaling=0.5,
        min_font_size=14,
        max_font_size=130,
        margin=6,
        random_state=0,
    ).generate_from_frequencies(words)

    figure, (axes,) = new_figures(title, (1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    # Outlines at the places of the cloud, whose own SVG needs the font on the reader's machine.
    for number, ((word, _), size, (top, left), _, _) in enumerate(cloud.layout_):
        face = ImageFont.truetype(font, size)
        ink_left, ink_top, *_ = face.getbbox(word)  # `top` and `left` are where the ink begins
        literal = word.replace("$", r"\$")  # not a formula
        outline = TextPath((0, 0), literal, size=size, prop=FontProperties(fname=font))
        place = Affine2D().scale(1, -1).translate(left - ink_left, top - ink_top + face.getmetrics()[0])
        colour = (BLUE, VERMILION, GREY)[number % 3]
        axes.add_patch(PathPatch(place.transform_path(outline), facecolor=colour, linewidth=0))
    return figure


def visible(token: str) -> str:
    """A token with white space and control characters visible. A leading space before other characters is dropped."""
    return show_spaces(token[1:] if token.startswith(" ") and token.strip() else token)


def _label_decades(axes, values: np.ndarray) -> None:
    """Set ticks at 0 and at powers of ten on both sides, within the range of the values."""
    largest = max(float(np.abs(values).max(initial=0.0)), _SMALLEST_CHANGE)
    decades = [10.0**power for power in range(-4, int(np.ceil(np.log10(largest))) + 1)]
    low, high = values.min(initial=0.0) < 0, values.max(initial=0.0) > 0
    ticks = [*([-d for d in reversed(decades)] if low else []), 0.0, *(decades if high else [])]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()

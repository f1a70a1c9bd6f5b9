"""
The page of `trl-fork report`: one HTML file with its style, script and pictures, which needs no network.

Names, options and tokens are whatever people and models wrote: the template escapes everything, and the page's policy
allows no script but its own.
"""

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from .._files import write_text
from .._visible import show_spaces
from .policy import page_templates
from .run_curves import Overlay, style_of
from .runs import ACTIVITIES, STEP_TIME
from .values import changes_of, shown


_DASHES = {"-": "", "--": "5 3", ":": "1.5 2.5"}
_TIMES = {STEP_TIME: "seconds per step"} | {f"time/{name}": f"of it {name}" for name in ACTIVITIES}
_TIMES |= {"tokens_per_step": "tokens per step", "tokens_per_second": "tokens per second"}


def write_run_page(path: str | Path, numbers: dict, drawn: Sequence[Overlay], sentences: Sequence[str] = ()) -> None:
    """
    Write the page of a report.

    Args:
        path (`str` or `Path`): Path of the page; missing folders are made.
        numbers (`dict`): What `trl-fork report` has collected.
        drawn (`Sequence[Overlay]`): The curves.
        sentences (`Sequence[str]`): What a reader of the accuracies must know.
    """
    folder = files(__package__) / "templates"
    style = "".join((folder / name).read_text("utf-8") for name in ("report.css", "runs.css"))
    script = (folder / "runs.js").read_text("utf-8")
    environment = page_templates(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"shown": shown, "visible": show_spaces}
    runs = numbers["runs"]
    page = environment.get_template("runs.html").render(
        title=f"{' and '.join(run['name'] for run in runs)}",
        style=style,
        script=script,
        runs=[
            {**run, "colour": colour, "dashes": _DASHES[dashes]}
            for run, (colour, dashes) in zip(runs, map(style_of, range(len(runs))), strict=True)
        ],
        numbers=numbers,
        sentences=sentences,
        several=len(runs) > 1,
        times=[(words, name) for name, words in _TIMES.items() if any(run["speed"].get(name) for run in runs)],
        points=_with_bars(numbers["differences"], 100.0),
        changes=[{**change, "lists": _lists(change)} for change in numbers["tokens"]],
        curves=[(overlay.panel, overlay.window, base64.b64encode(overlay.svg.encode()).decode()) for overlay in drawn],
    )
    # Surrogates in names have no bytes.
    write_text(path, page, errors="replace")


def _lists(change: dict) -> list[tuple[str, list[dict]]]:
    """The lists of token types with the bars of their intervals, all on one scale."""
    lists = changes_of(change)
    bars = iter(_with_bars([{**row, "mean": row["mean_change"]} for _, rows in lists for row in rows], 1.0))
    return [(title, [next(bars) for _ in rows]) for title, rows in lists]


def _with_bars(rows: list[dict], unit: float) -> list[dict]:
    """Rows with `bar`: places of low, mean and high on a scale from -50 to 50 that is the same for all; or `None`."""
    known = [row for row in rows if row["mean"] is not None and row["low"] is not None]
    # An interval of a few problems may be many times the others: it is cut off at twice the largest mean.
    limit = max((abs(row["mean"]) for row in known), default=0.0) * 2 or 1e-9
    found = []
    for row in rows:
        bar = None
        if row["mean"] is not None and row["low"] is not None:
            ends = [max(-limit, min(limit, row[name])) * 48 / limit for name in ("low", "mean", "high")]
            bar = dict(zip(("low", "mean", "high"), ends, strict=True))
        found.append({**row, "bar": bar, "unit": unit})
    return found

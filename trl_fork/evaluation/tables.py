"""Evaluations as tables on the terminal."""

import json
from pathlib import Path
from typing import Literal, TextIO

from .._visible import show_controls
from .metrics import compare
from .store import read_completions


def print_results(results: dict[str, dict]) -> None:
    """
    Print the contents of `results.json`, one row per data set, fractions as percentages.

    Args:
        results (`dict`): Result of [`~evaluation.metrics.summarize`].
    """
    has_majority = any(f"maj@{result['num_samples']}" in result for result in results.values())
    header = ["data set", "problems", "K", "avg@K", "± s.e.", *(["maj@K"] if has_majority else [])]
    header += ["pass@K", "mean length", "truncated"]
    rows = []
    for dataset, result in results.items():
        k = result["num_samples"]
        error = result[f"avg@{k}_stderr"]
        majority = result.get(f"maj@{k}")
        rows.append(
            [
                *(dataset_label(dataset), str(result["num_problems"]), str(k)),
                *(f"{result[f'avg@{k}']:.2%}", "-" if error is None else f"{error:.2%}"),
                *(["-" if majority is None else f"{majority:.2%}"] if has_majority else []),
                *(f"{result[f'pass@{k}']:.2%}", f"{result['mean_length']:,.0f}"),
                f"{result['truncated_fraction']:.1%}",
            ]
        )
    print_table("Evaluation", header, rows)
    failures = sum(result["grading_failures"] for result in results.values())
    if failures:
        print(f"{failures} samples count as wrong because math-verify could not grade them within its limits.")


def print_comparison(path_a: str, path_b: str) -> None:
    """
    Print two evaluations side by side, with the paired difference and its 95 % confidence interval in points.

    Settings in which the two differ are named, except for the model.

    Args:
        path_a, path_b (`str`): Two `results.json`, with their `completions.jsonl` beside them, or their folders.

    Raises:
        `ValueError`: if a file is missing.
    """
    results, samples, settings = [], [], []
    for path in map(Path, (path_a, path_b)):
        path = path / "results.json" if path.is_dir() else path
        completions = path.with_name("completions.jsonl")
        for file in (path, completions):
            if not file.is_file():
                raise ValueError(f"There is no {file}. --compare needs results.json and completions.jsonl beside it.")
        results.append(json.loads(path.read_text()))
        samples.append(read_completions(completions))
        settings_file = path.with_name("settings.json")
        settings.append(json.loads(settings_file.read_text())["settings"] if settings_file.is_file() else {})
    differences = compare(samples[0], samples[1])
    rows = []
    for dataset in dict.fromkeys([*results[0], *results[1]]):
        row = [dataset_label(dataset)]
        for result in (r.get(dataset) for r in results):
            if result is None:
                row += ["-", "-"]
                continue
            accuracy = result[f"avg@{result['num_samples']}"]
            row += [f"{accuracy:.2%}", f"{result['mean_length']:,.0f}"]
        difference = differences.get(dataset)
        row += ["-", "-", "0"]
        if difference and difference.mean is not None:
            row[-3:] = [f"{100 * difference.mean:+.2f}", "-", str(difference.num_problems)]
        if difference and difference.low is not None and difference.high is not None:
            row[-2] = f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
        rows.append(row)
    print(f"A: {path_a}\nB: {path_b}")
    header = ["data set", "A avg@K", "length", "B avg@K", "length", "B - A", "95 % interval", "problems"]
    print_table("Comparison", header, rows)
    differ = [name for name in {**settings[0], **settings[1]} if settings[0].get(name) != settings[1].get(name)]
    for name in (name for name in differ if name not in ("model", "base_model", "weights")):
        print(f"Different {name}: {settings[0].get(name)!r} and {settings[1].get(name)!r}.")


def print_table(
    title: str,
    header: list[str],
    rows: list[list[str]],
    *,
    justify: Literal["left", "right"] = "right",
    file: TextIO | None = None,
) -> None:
    """
    Print a table, to the standard output if `file` is not given. Columns justified left may be folded, and control
    characters are shown. On a narrow terminal headers are folded and columns stand close, and numbers stay whole.
    """
    from rich.console import Console
    from rich.table import Table

    # The width of a file or pipe is not known, so nothing is folded there.
    console = Console(file=file)
    if not console.is_terminal:
        console = Console(file=file, width=160)
    rows = [[show_controls(cell) for cell in row] for row in rows]
    numbers = [column > 0 and justify == "right" for column in range(len(header))]

    def made(names: list[str], padding: int) -> tuple[Table, int]:
        """The table, and the least width at which its numbers are whole."""
        table, width = Table(title=title, padding=(0, padding)), len(names) + 1
        for column, (name, *cells) in enumerate(zip(names, *rows, strict=True)):
            longest = max(map(len, [*name.split("\n"), *cells]))
            # Without a least width, rich takes all room from the columns that may be folded.
            least = longest if numbers[column] else min(longest, 12)
            width += least + 2 * padding
            table.add_column(
                name, justify=justify if column else "left", no_wrap=numbers[column], min_width=least, overflow="fold"
            )
        for row in rows:
            table.add_row(*row)
        return table, width

    folded = [name.replace(" ", "\n") if number else name for name, number in zip(header, numbers, strict=True)]
    for names, padding in ((header, 1), (folded, 1), (folded, 0)):
        table, width = made(names, padding)
        if width <= console.width:
            console.print(table)
            return
    # The terminal breaks lines that are too long yet; rich would leave out columns.
    console.width = width
    console.print(table)


def dataset_label(dataset: str) -> str:
    """A short name for a table: that of a local file without its folder and suffix."""
    return Path(dataset).stem if Path(dataset).suffix else dataset

"""The tables of a report on the console."""

from ..analysis.figures import visible
from ..evaluation.tables import print_table
from ..report.runs import ACTIVITIES, STEP_TIME
from ..report.values import changes_of, shown


def print_report(numbers: dict) -> None:
    """
    Print the numbers of a report.

    Args:
        numbers (`dict`): Result of [`~commands.report_numbers.collect`].
    """
    runs = numbers["runs"]
    labels = [run["label"] for run in runs]
    for run in runs:
        print(f"{run['label']}: {run['path']} ({run['progress']})")
    several = len(runs) > 1
    if numbers["settings"]:
        title = "Set differently" if several else "Options that are not at their default"
        rows = [[row["name"], *map(_short, row["values"])] for row in numbers["settings"]]
        print_table(title, ["option", *labels], rows, justify="left")
    elif several:
        print("No option is known to differ.")
    if numbers["metrics"]:
        steps = [metric["step"] for metric in numbers["metrics"]]
        one = len(set(steps)) == 1 and steps[0] is not None
        rows = []
        for metric in numbers["metrics"]:
            at = [] if one else ["-" if metric["step"] is None else f"{metric['step']:,}"]
            rows.append([f"{metric['title']} ({metric['unit']})", *at, *map(shown, metric["values"])])
        title = f"Step {steps[0]:,}" if one else "At the last step logged by all"
        print_table(title, ["metric", *([] if one else ["step"]), *labels], rows)
    _print_accuracy(numbers)
    _print_speed(runs, labels)
    for change in numbers["tokens"]:
        _print_tokens(change)
    for note in numbers["notes"]:
        print(f"Note: {note}")


def _print_accuracy(numbers: dict) -> None:
    if numbers["results"]:
        rows = [
            [
                *(row["run"], row["label"], str(row["num_problems"]), str(row["num_samples"])),
                f"{row['accuracy']:.2%}",
                "-" if row["standard_error"] is None else f"{row['standard_error']:.2%}",
                f"{row['mean_length']:,.0f}",
            ]
            for row in numbers["results"]
        ]
        print_table("Accuracy", ["run", "data set", "problems", "K", "avg@K", "± s.e.", "mean length"], rows)
    compared = [row for row in numbers["differences"] if row["mean"] is not None]
    if compared:
        rows = []
        for row in compared:
            interval = "-" if row["low"] is None else f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
            mean = f"{100 * row['mean']:+.2f}"
            pair = f"{row['run']} - {row['baseline']}"
            rows.append([pair, row["labels"][0], mean, interval, str(row["num_problems"])])
        header = ["", "data set", "points", "95 % interval", "problems"]
        print_table("Difference in accuracy, paired by problem", header, rows)
    for sentence in sentences_of(numbers["differences"]):
        print(sentence)


def sentences_of(differences: list[dict]) -> list[str]:
    """What a reader of the differences must know: those refused, and evaluations made with other settings."""
    found = []
    for row in differences:
        who = f"{row['run']} - {row['baseline']}, {' and '.join(dict.fromkeys(row['labels']))}"
        if row["refused"]:
            found.append(f"{who}: no paired interval, because {row['refused']}.")
        for name, (first, other) in row["other_settings"].items():
            found.append(
                f"{who}: {name} of the evaluations is {_short(first)} in {row['baseline']} and {_short(other)} in "
                f"{row['run']}, which is part of the difference."
            )
        if row["other_prompts"]:
            found.append(
                f"{who}: {row['other_prompts']:,} of {row['num_problems']:,} problems were asked with another prompt, "
                "which is part of the difference."
            )
    return found


def _print_speed(runs: list[dict], labels: list[str]) -> None:
    speeds = [run["speed"] for run in runs]
    if not any(speeds):
        return
    names = {STEP_TIME: "seconds per step"} | {f"time/{name}": f"  {name}" for name in ACTIVITIES}
    names |= {"tokens_per_step": "tokens per step", "tokens_per_second": "tokens per second"}
    rows = [
        [words, *(shown(speed.get(name)) for speed in speeds)]
        for name, words in names.items()
        if any(speed.get(name) for speed in speeds)
    ]
    print_table("Time and tokens, means over the run", ["", *labels], rows)


def _print_tokens(change: dict) -> None:
    overall, pair = change["all"], f"{change['run']} - {change['baseline']}"
    print(
        f"Entropy of {change['num_tokens']:,} tokens of {change['completions']} ({change['num_problems']:,} "
        f"problems), in nats: {change['baseline']} {overall['mean_before']:.4f}, {change['run']} "
        f"{overall['mean_after']:.4f}"
    )
    rows = []
    for title, types in changes_of(change):
        rows += [
            [title if number == 0 else "", visible(row["token"]), *_of_type(row)] for number, row in enumerate(types)
        ]
    if rows:
        header = [
            "",
            "token",
            "count",
            "problems",
            change["baseline"],
            change["run"],
            "change",
            "95 %, all types together",
        ]
        print_table(f"Tokens that gained or lost entropy, {pair}, in nats", header, rows)
    resolved = sum(row["resolved"] for row in change["types"])
    print(f"The change of {resolved} of {len(change['types'])} token types is told from 0.")


def _of_type(row: dict) -> list[str]:
    interval = "-" if row["low"] is None else f"[{row['low']:+.4f}, {row['high']:+.4f}]"
    return [
        *(f"{row['count']:,}", f"{row['num_problems']:,}", f"{row['mean_before']:.4f}", f"{row['mean_after']:.4f}"),
        *(f"{row['mean_change']:+.4f}", interval),
    ]


def _short(value) -> str:
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

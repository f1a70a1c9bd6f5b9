"""The tables of the page, from its numbers, beside what the paper says."""

from docs.build_forks import code


# Qwen3-8B on AIME24 and AIME25, Fig. 2a
PAPER = {"num_tokens": 1_000_000, "fraction_below_0.01": 0.5064, "p80": 0.672}
# Qwen3-14B base, with all tokens: overlap with the start and with the end, by optimizer step, Table 1
PAPER_OVERLAP = {16: (98.92, 86.71), 112: (98.70, 86.83), 480: (93.02, 90.65), 864: (87.45, 96.61), 1360: (86.67, 100)}


def distribution_table(columns: dict[str, dict]) -> str:
    """Analysis A. A column is a part of the numbers with `distribution` and `responses`."""
    head = "| | " + " | ".join(columns) + " | the paper's Qwen3-8B |"
    parts = [each["distribution"] for each in columns.values()]
    rows = [
        ("Tokens", [f"{part['num_tokens']:,}" for part in parts], "over 1,000,000"),
        ("Mean entropy, nats", [f"{part['mean']:.2f}" for part in parts], ""),
        ("Median", [f"{part['p50']:.2f}" for part in parts], ""),
        ("80th percentile", [f"{part['p80']:.3f}" for part in parts], f"{PAPER['p80']:.3f}"),
        (
            "Tokens below 0.01 nats",
            [f"{part['fraction_below_0.01']:.1%}" for part in parts],
            f"{PAPER['fraction_below_0.01']:.1%}",
        ),
        ("Right answers", [_right(each["responses"]) for each in columns.values()], ""),
    ]
    lines = [f"| {name} | {' | '.join(cells)} | {paper} |" for name, cells, paper in rows]
    return "\n".join([head, "| --- |" + " ---: |" * (len(columns) + 1), *lines])


def _right(responses: dict) -> str:
    return f"{responses['num_correct']} of {responses['num_responses']}"


def words_table(columns: dict[str, dict]) -> str:
    """Analysis B: token types of highest and of lowest mean entropy."""
    lines = ["| Mean entropy | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for end, name in (("top", "highest"), ("bottom", "lowest")):
        cells = []
        for part in columns.values():
            types = part["tokens"][end][: part["tokens"]["num_types"] // 2]  # no type at both ends
            cells.append(", ".join(f"{code(entry['token'])} {entry['mean_entropy']:.2f}" for entry in types))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def overlap_table(part: dict, names: list[str]) -> str:
    """Analysis D, a row for each model in the order of training."""
    lines = [
        "| | with the start, whole set | with the end, whole set | with the start, per response | per response, end |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in zip(names, part["overlap"]["models"], strict=True):
        shares = [row[key][pool] for pool in ("whole_set", "per_response") for key in ("with_reference", "with_model")]
        lines.append(f"| {name} | " + " | ".join(f"{100 * share:.2f}" for share in shares) + " |")
    return "\n".join(lines)


def paper_overlap_table() -> str:
    lines = ["| Paper's step | with the start | with the end |", "| --- | ---: | ---: |"]
    lines += [f"| {step} | {start:.2f} | {end:.2f} |" for step, (start, end) in PAPER_OVERLAP.items()]
    return "\n".join(lines)


def change_table(columns: dict[str, dict], bins: tuple[int, ...] = (0, 4, 9, 14, 16, 19)) -> str:
    """Analysis E: mean change by percentile of the start, for some of the twenty bins."""
    lines = ["| Percentile before training | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    changes = [part["change"]["models"][-1]["bins"] for part in columns.values()]
    for number in bins:
        low, high = changes[0][number]["percentiles"]
        cells = [f"{rows[number]['mean_change']:+.3f}" for rows in changes]
        lines.append(f"| {low:g} to {high:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def percentiles_table(part: dict, names: list[str]) -> str:
    """Analysis F: percentiles of the entropy, a row for each model."""
    levels = part["percentiles"]["levels"]
    lines = ["| | " + " | ".join(f"{100 * level:g}th" for level in levels) + " |"]
    lines.append("| --- |" + " ---: |" * len(levels))
    for name, row in zip(names, part["percentiles"]["models"], strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row["values"]) + " |")
    return "\n".join(lines)


def temperature_table(cells: list[dict]) -> str:
    """Analysis C."""
    temperatures = sorted({cell["forking_temperature"] for cell in cells} | {c["other_temperature"] for c in cells})
    lines = ["| Temperature | " + " | ".join(f"{each:g}" for each in temperatures) + " |"]
    lines.append("| --- |" + " ---: |" * len(temperatures))
    for varied, fixed, name in (
        ("forking_temperature", "other_temperature", "of forking tokens, others at 1"),
        ("other_temperature", "forking_temperature", "of the others, forking tokens at 1"),
    ):
        line = {cell[varied]: cell for cell in cells if cell[fixed] == 1}
        shown = [f"{100 * line[t]['accuracy']:.0f} ± {100 * line[t]['standard_error']:.0f}" for t in temperatures]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def accuracy(part: dict, forking: float, other: float) -> str:
    """Accuracy at two temperatures, in percent."""
    cells = part["decoding_temperature"]["cells"]
    (found,) = [c for c in cells if (c["forking_temperature"], c["other_temperature"]) == (forking, other)]
    return f"{100 * found['accuracy']:.0f}"

"""The table of `whole_step.py` in Markdown. Needs nothing but Python, as `gpu_page.py`."""

PHASES = ("generation", "rewards", "scoring", "training", "other")
WHOLE, FLOOR = "whole", "floor"
GENERATIONS = 8
CLOCKS = {"seconds": "wall seconds", "processor_seconds": "processor seconds"}


def markdown_table(rows: list[dict], options: dict, device: str) -> str:
    """
    What was compared, and a row for each arm.

    Args:
        rows (`list[dict]`): Of one workload, as `whole_step.py` writes them; TRL's is the first.
        options (`dict`): Of the command line.
        device (`str`): Name of the device.
    """
    first = rows[0]
    floor = next((row for row in rows if row["arm"] == FLOOR), None)
    kind = "LoRA, " if options["lora"] else ""
    several = f", on {options['processes']} processes" if options["processes"] > 1 else ""
    rounds = f"medians of {first['rounds']} rounds" if first["rounds"] > 1 else "one round"
    lines = [
        f"**{first['workload']}**: {first['num_tokens']:,} tokens in {GENERATIONS * options['groups']} completions of "
        f"at most {options['max_length']:,}, micro-batches of {options['micro_batch']}{several}; {options['shape']}, "
        f"{kind}{device}. {CLOCKS[first['clock']].capitalize()}, {rounds}.",
        "",
        "| | Generation | Rewards | Scoring | Training | Other | Whole | x TRL | Phase, x floor | Peak, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        seconds = row[row["clock"]]
        cells = [
            "ours, " * row["arm"].startswith("with") + row["arm"],
            *(f"{seconds[phase]:.2f}" for phase in (*PHASES, WHOLE)),
            ratio_cell(row),
            f"{training_phase(seconds) / training_phase(floor[row['clock']]):.2f}" if floor else "",
            memory_cell(row, first),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_phase(seconds: dict) -> float:
    """Everything but generation and rewards."""
    return seconds[WHOLE] - seconds["generation"] - seconds["rewards"]


def ratio_cell(row: dict) -> str:
    """How many times faster than TRL in the same round; of several rounds the median and the extremes."""
    if row["ratio"] is None:
        return ""
    extremes = " ({:.2f} to {:.2f})".format(*row["ratio_range"]) if row["rounds"] > 1 else ""
    return f"{row['ratio']:.2f}{extremes}"


def memory_cell(row: dict, first: dict) -> str:
    if row.get("memory") is None:
        return ""
    return f"{row['memory'] / 2**20:,.0f}, {row['memory'] / first['memory']:.0%}"

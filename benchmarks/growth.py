"""
How the time of a step grows: with the length of completions, their number, and the processes that share them.

    python -m benchmarks.growth                  # tens of minutes on two cores
    python -m benchmarks.growth --figure         # the figure again, from the results that are there

Every point is a run of `whole_step.py` in processes of its own, with a tiny model and a long tail without inert
groups: the whole step and its training phase (everything but generation and rewards), of TRL and of ours. TRL is left
out beyond `--trl_longest` tokens, where its steps take minutes. On one process seconds are those of the processor, on
two those of the clock on the wall. Written to `benchmarks/results/growth.json`, after every point, and to
`docs/growth.png`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from trl_fork._files import write_json

from .whole_step_table import WHOLE, training_phase


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "growth.json"
FIGURE = ROOT / "docs" / "growth.png"
# What grows, and arguments of `whole_step.py` by its value. Rows come in groups of 8.
AXES = {
    "length": {n: ["--max_length", n, "--groups", 1, "--micro_batch", 4] for n in (512, 1024, 2048, 4096, 8192)},
    "rows": {n: ["--max_length", 256, "--groups", n // 8] for n in (16, 32, 64, 128)},
    "processes": {n: ["--max_length", 256, "--groups", 8, "--processes", n, "--repeats", 3] for n in (1, 2)},
}
COMMON = ["--workload", "long tail", "--arm", "ours"]


def measure(axis, value, trl_longest):
    """
    One point.

    Returns:
        `dict`: `axis`, `value`, `tokens`, and by arm `whole` and `training` seconds and all phases.
    """
    skip = ["floor", "memory", *(["TRL"] if axis == "length" and value > trl_longest else [])]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        words = ["--repeats", 1, *COMMON, *AXES[axis][value], "--skip", *skip, "--output", output]
        command = [sys.executable, "-m", "benchmarks.whole_step", *map(str, words)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        rows = json.loads(output.read_text())["rows"]
    # On the wall for both numbers of processes, so that they can be compared
    clock = "seconds" if axis == "processes" else "processor_seconds"
    return {
        "axis": axis,
        "value": value,
        "tokens": rows[0]["num_tokens"],
        "clock": clock,
        "arms": {
            row["arm"]: {"whole": row[clock][WHOLE], "training": training_phase(row[clock]), "phases": row[clock]}
            for row in rows
        },
    }


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=list(AXES), nargs="+", default=list(AXES), help="all; others are kept")
    parser.add_argument("--longest", type=int, default=8192, help="no longer completions")
    parser.add_argument("--trl_longest", type=int, default=4096, help="TRL's steps with no longer completions")
    parser.add_argument("--figure", action="store_true", help="measure nothing, draw the figure")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file with the points")
    parser.add_argument("--image", type=Path, default=FIGURE, help="the figure")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    points = json.loads(options.output.read_text())["points"] if options.output.exists() else []
    if not options.figure:
        points = [point for point in points if point["axis"] not in options.axis]
        for axis in options.axis:
            for value in AXES[axis]:
                if axis == "length" and value > options.longest:
                    continue
                point = measure(axis, value, options.trl_longest)
                points.append(point)
                write_json(options.output, {"points": points})
                seconds = ", ".join(f"{arm} {found['whole']:.1f} s" for arm, found in point["arms"].items())
                print(f"{axis} {value}: {point['tokens']:,} tokens, {seconds}", flush=True)
    from .growth_figure import draw, markdown_table

    draw(points, options.image)
    print(f"\n{markdown_table(points)}\n\n{options.output}, {options.image}")


if __name__ == "__main__":
    main()

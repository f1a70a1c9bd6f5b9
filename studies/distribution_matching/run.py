"""
Run the study, a stage at a time: does matching a distribution keep several right strategies alive?

    python -m studies.distribution_matching.run --stage start
    python -m studies.distribution_matching.run --stage tune
    python -m studies.distribution_matching.run --stage arms
    python -m studies.distribution_matching.run --stage common
    python -m studies.distribution_matching.report

Every run is a line of RESULTS/tiny.jsonl, written when it ends. A stage that was cut off goes on with the runs that
are missing. `--stage arms` makes the runs of the arms whose learning rate is chosen by then. `--only` makes one cell
again and prints it beside the line that is there, without changing the file:

    python -m studies.distribution_matching.run --stage tune --only "grpo beta0 lr0.00025 seed100"
"""

import argparse
import json
from pathlib import Path

from studies.cells import add_run_options, compare, console, pick, read_rows, run_cells  # before transformers
from trl_fork.commands.options import OptionParser

from .plan import ARMS, MEASURES, SEEDS, STAGES, TASK, TUNING_SEEDS, Cell, cell_of


RESULTS = Path(__file__).resolve().parent / "results"


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=["start", *STAGES])
    add_run_options(parser, ARMS, RESULTS)
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    path = options.results / "tiny.jsonl"
    make_start(options.work_dir)
    if options.stage == "start":
        measure(options)
        return
    rows = read_rows(path)
    cells = [cell for cell in STAGES[options.stage](rows) if cell.arm in options.arms]
    if options.only:
        cell = pick(cells, options.only, options.stage)
        compare(run_cell(cell, options.work_dir), rows, cell_of, MEASURES)
        return
    arguments = (options.work_dir,)
    run_cells(cells, rows, path, options.workers, cell_of=cell_of, run_cell=run_cell, arguments=arguments)


def make_start(work_dir: Path) -> None:
    """The warmed-up model, where it is not there yet."""
    from studies.which_tokens.run import make_starts

    make_starts(work_dir, "tiny", [TASK])


def measure(options: argparse.Namespace) -> None:
    """Write what the warmed-up model can do to RESULTS/tiny-start.json, and sample it on the training problems."""
    from .runs import measure_start, sample_partition

    path = options.results / "tiny-start.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    start = measure_start(options.work_dir)
    rates = []
    for seed in (*SEEDS, *TUNING_SEEDS):
        drawn = sample_partition(options.work_dir, seed)
        if seed in SEEDS:
            rates += [sum(row["rewards"]) / len(row["rewards"]) for row in drawn.values()]
    start["partition"] = {"pass_rate": sum(rates) / len(rates), "none_right": rates.count(0.0) / len(rates)}
    path.write_text(json.dumps(start, indent=2) + "\n")
    console.print(f"{path} is of the warmed-up model.")


def run_cell(cell: Cell, work_dir: Path) -> dict:
    from .runs import run

    return run(cell, work_dir)


if __name__ == "__main__":
    main(parse_arguments())

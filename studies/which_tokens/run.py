"""
Run the study, a stage at a time: does it matter which 20 % of the tokens are trained on?

    python -m studies.which_tokens.run --stage warm_up
    python -m studies.which_tokens.run --stage tune
    python -m studies.which_tokens.run --stage arms
    python -m studies.which_tokens.run --stage sweep
    python -m studies.which_tokens.run --stage edges
    python -m studies.which_tokens.run --stage confirm
    python -m studies.which_tokens.run --stage common
    python -m studies.which_tokens.run --stage long
    python -m studies.which_tokens.run --stage variants
    python -m studies.which_tokens.report

Every run is a line of RESULTS/SIZE.jsonl, written when it ends. A stage that was cut off goes on with the runs that
are missing. `--only` makes one cell again and prints it beside the line that is there, without changing the file:

    python -m studies.which_tokens.run --stage arms --only "tiny digit_sums top20 u1 lr0.001 seed0"
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from studies.cells import add_run_options, compare, console, pick, read_rows, run_cells  # before transformers
from trl_fork.commands.options import OptionParser

from .grid import ARMS, STAGES, TASKS, Cell, cell_of


MEASURES = ("accuracy", "pass@8", "greedy_accuracy", "length", "entropy")  # that `--only` prints
RESULTS = Path(__file__).resolve().parent / "results"


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=["warm_up", *STAGES])
    parser.add_argument("--size", default="tiny", choices=["tiny", "30m", "100m"], help="of the model")
    parser.add_argument("--task", choices=TASKS, help="runs of this task only")
    add_run_options(parser, ARMS, RESULTS)
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    tasks = [options.task] if options.task else TASKS
    path = options.results / f"{options.size}.jsonl"
    if options.stage == "warm_up":
        make_starts(options.work_dir, options.size, tasks)
        measure_starts(options, tasks)
        return
    rows = read_rows(path)
    cells = [cell for cell in STAGES[options.stage](options.size, rows, tasks) if cell.arm in options.arms]
    if options.only:
        cell = pick(cells, options.only, options.stage)
        make_starts(options.work_dir, options.size, tasks)
        compare(run_cell(cell, options.work_dir, False), rows, cell_of, MEASURES)
        return
    make_starts(options.work_dir, options.size, tasks)
    arguments = (options.work_dir, options.stage == "arms")
    run_cells(cells, rows, path, options.workers, cell_of=cell_of, run_cell=run_cell, arguments=arguments)


def make_starts(work_dir: Path, size: str, tasks: Sequence[str] = TASKS) -> None:
    """The warmed-up model of each task, where it is not there yet."""
    from .runs import start_path, warm_up

    for task in tasks:
        if not (start_path(work_dir, size, task) / "model.safetensors").exists():
            console.print(f"Warm-up for {task}: a minute or two on a CPU.")
            warm_up(work_dir, size, task)


def measure_starts(options: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Write what the warmed-up models can do to RESULTS/SIZE-start.json."""
    from .runs import measure_start

    path = options.results / f"{options.size}-start.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = json.loads(path.read_text()) if path.exists() else {}
    measured |= {task: measure_start(options.work_dir, options.size, task) for task in tasks}
    path.write_text(json.dumps(measured, indent=2) + "\n")
    console.print(f"{path} is of {', '.join(tasks)}.")


def run_cell(cell: Cell, work_dir: Path, take_gradient_apart: bool) -> dict:
    from .runs import run

    return run(cell, work_dir, take_gradient_apart)


if __name__ == "__main__":
    main(parse_arguments())

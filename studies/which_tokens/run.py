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
import os
import sys
from collections.abc import Sequence
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process per run uses a computer better than a run on all cores


from studies.cells import console, read_rows, run_cells
from trl_fork.commands.options import OptionParser

from .grid import ARMS, STAGES, TASKS, Cell, cell_of


RESULTS = Path(__file__).resolve().parent / "results"


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=["warm_up", *STAGES])
    parser.add_argument("--size", default="tiny", choices=["tiny", "30m", "100m"], help="of the model")
    parser.add_argument("--task", choices=TASKS, help="runs of this task only")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="runs of these arms only")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/study"), help="folder of the warmed-up models")
    parser.add_argument("--only", help="one cell, as the progress bar names it: run it again and compare")
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
        cells = [cell for cell in cells if str(cell) == options.only] or sys.exit(
            f"Stage {options.stage} has no cell {options.only!r}. It has, for example, {str(cells[0])!r}."
        )
        make_starts(options.work_dir, options.size, tasks)
        compare(run_cell(cells[0], options.work_dir, False), rows)
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


def compare(row: dict, rows: list[dict]) -> None:
    earlier = next((old for old in rows if cell_of(old) == cell_of(row)), None)
    for name in ("accuracy", "pass@8", "greedy_accuracy", "length", "entropy"):
        recorded = "not there" if earlier is None else f"{earlier[name]:.4g}"
        console.print(f"{name:16} now {row[name]:.4g}, in the file {recorded}", highlight=False)


if __name__ == "__main__":
    main(parse_arguments())

"""
Run the study, a stage at a time: every rule of token credit beside its control.

    python -m studies.credit_rules.run --stage start
    python -m studies.credit_rules.run --stage shared
    python -m studies.credit_rules.run --stage batch
    python -m studies.credit_rules.run --stage scope
    python -m studies.credit_rules.run --stage tune
    python -m studies.credit_rules.run --stage finalists
    python -m studies.credit_rules.run --stage own
    python -m studies.credit_rules.report

`--stage all` is all of them, the last three setting by setting, in the order of the plan. Two of the tasks need
reasoning-gym (`pip install '.[study]'`).

Every run is a line of RESULTS/tiny.jsonl, written when it ends. A stage that was cut off goes on with the runs that
are missing. The stages `finalists` and `own` make the runs of the arms that the stages before them are complete for.
`--only` makes one cell again and prints it beside the line that is there, without changing the file:

    python -m studies.credit_rules.run --stage shared --only "digit_sums forking u1 lr0.00025 seed0"
"""

import argparse
import json
import subprocess
from pathlib import Path

from studies.cells import add_run_options, compare, console, pick, read_rows, run_cells  # before transformers
from trl_fork.commands.options import OptionParser

from .plan import ARMS, NUM_SAMPLES, ORDER, STAGES, TASKS, Cell, cell_of


RESULTS = Path(__file__).resolve().parent / "results"
MEASURES = ("accuracy", f"pass@{NUM_SAMPLES}", "length", "tokens_with_gradient")  # that `--only` prints


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=["start", *STAGES, "all"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="runs of these tasks only")
    add_run_options(parser, ARMS, RESULTS)
    options = parser.parse_args(arguments)
    if options.only and options.stage not in STAGES:
        parser.error(f"--only is for one of the stages {', '.join(STAGES)}, got --stage {options.stage}.")
    return options


def main(options: argparse.Namespace) -> None:
    from studies.which_tokens.run import make_starts

    path = options.results / "tiny.jsonl"
    make_starts(options.work_dir, "tiny", options.tasks)
    if options.only:
        rows = read_rows(path)
        cell = pick(STAGES[options.stage](rows), options.only, options.stage)
        compare(run_cell(cell, options.work_dir, current_commit()), rows, cell_of, MEASURES)
        return
    if options.stage in ("start", "all"):
        measure_starts(options)
    if options.stage == "start":
        return
    for stage, setting in ORDER if options.stage == "all" else [(options.stage, None)]:
        rows = read_rows(path)
        cells = [
            cell
            for cell in STAGES[stage](rows)
            if cell.arm in options.arms
            and cell.task in options.tasks
            and setting in (None, (cell.task, cell.updates_per_batch))
        ]
        console.print(f"Stage {stage}{f' on {setting[0]}, {setting[1]} updates per batch' if setting else ''}")
        arguments = (options.work_dir, current_commit())
        run_cells(cells, rows, path, options.workers, cell_of=cell_of, run_cell=run_cell, arguments=arguments)


def measure_starts(options: argparse.Namespace) -> None:
    """Write what the warmed-up models can do to RESULTS/tiny-start.json, for the tasks that it has not."""
    from .runs import measure_start

    path = options.results / "tiny-start.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = json.loads(path.read_text()) if path.exists() else {}
    measured |= {task: measure_start(options.work_dir, task) for task in options.tasks if task not in measured}
    path.write_text(json.dumps(measured, indent=2) + "\n")
    console.print(f"{path} is of {', '.join(measured)}.")


def current_commit() -> str:
    """The commit that the runs are made with, for their lines of results."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def run_cell(cell: Cell, work_dir: Path, commit: str) -> dict:
    from .runs import run

    return run(cell, work_dir, commit)


if __name__ == "__main__":
    main(parse_arguments())

r"""
Show a run on one page, or compare it with others: curves, settings, accuracy, tokens, time.

    trl-fork report outputs/gsm8k
    trl-fork report outputs/gsm8k outputs/all_tokens
    trl-fork report outputs/gsm8k outputs/all_tokens --completions outputs/gsm8k/evaluation/completions.jsonl

RUN is the output_dir of a training, finished or not: a run that was cut off, or is still running, is shown up to its
last checkpoint. A folder of `trl-fork evaluate` alone can be one, too. The first run is what the others are compared
with: by the settings that differ, by their curves, and by the accuracy of the evaluations in their folders, with an
interval paired by problem. With --completions both models read these responses, and the page shows which tokens gained
or lost entropy. OUTPUT receives report.html, a page of one file that needs no network, and report.json, its numbers.
"""

import argparse
import re
import shlex
from pathlib import Path

from .._files import write_json
from ..report.curves import require_matplotlib
from ..report.run_curves import overlays
from ..report.run_page import write_run_page
from ..report.runs import Run, read_run
from .options import OptionParser
from .program import program
from .report_console import print_report, sentences_of
from .report_evaluations import COMPLETIONS, Evaluation, find_evaluation
from .report_numbers import collect
from .report_tokens import has_model


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OptionParser(description=__doc__, command="report")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a training, or folder of an evaluation")
    parser.add_argument("--output", help="folder of report.html and report.json (default: report in the first run, "
                        "report-OTHER for a comparison)")  # fmt: skip
    parser.add_argument("--evaluation", metavar="NAME", help="subfolder of each run that holds its evaluation "
                        "(default: evaluation, or the only one)")  # fmt: skip
    parser.add_argument("--completions", help="JSONL file of responses that the models of all runs read, such as "
                        "evaluate's completions.jsonl")  # fmt: skip
    parser.add_argument("--max_responses", type=int, help="read only the first responses of the file")
    parser.add_argument("--min_token_count", type=int, default=50, help="compare token types seen more often than "
                        "this (default: %(default)s)")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=1.0, help="inside the softmax (default: %(default)s)")
    parser.add_argument("--max_batch_tokens", type=int, default=16384, help="tokens of a scoring batch")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, such as bfloat16 (default: the checkpoint's)"
    )
    parser.add_argument("--device_map", help="'auto' spreads a large model over all GPUs")
    options = parser.parse_args(arguments)
    folders = [Path(run).resolve() for run in options.runs]
    twice = [run for run, folder in zip(options.runs, folders, strict=True) if folders.count(folder) > 1]
    problems = []
    if twice:
        problems.append(f"{twice[0]!r} is given twice: a run is compared with others")
    if options.completions and not Path(options.completions).is_file():
        problems.append(f"--completions: there is no file {options.completions!r}")
    if options.completions and len(options.runs) < 2:
        problems.append("--completions compares the tokens of two models: name another run, or see trl-fork analyze")
    if options.max_responses is not None and options.max_responses < 1:
        problems.append(f"--max_responses must be at least 1, got {options.max_responses}: it counts responses")
    if options.min_token_count < 0:
        problems.append(f"--min_token_count must not be negative, got {options.min_token_count}: it counts tokens")
    if not options.temperature > 0:
        problems.append(f"--temperature must be positive, got {options.temperature}: at 0 every entropy is 0")
    parser.refuse(problems)
    return options


def run(options: argparse.Namespace) -> None:
    require_matplotlib()
    runs = [read_run(path) for path in options.runs]
    evaluations = [find_evaluation(found, options.evaluation) for found in runs]
    for found, evaluation in zip(runs, evaluations, strict=True):
        if found.step is None and evaluation is None:
            refuse(found)
    output = Path(options.output) if options.output else default_output(runs)
    drawn = overlays(runs)
    numbers = collect(runs, evaluations, drawn, output, options)
    write_json(output / "report.json", numbers, ensure_ascii=False)
    write_run_page(output / "report.html", numbers, drawn, sentences_of(numbers["differences"]))
    print_report(numbers)
    print(f"\n{output / 'report.json'} has the numbers.")
    print(next_steps(runs, evaluations, numbers, output))


def refuse(run: Run) -> None:
    """Say why a folder is no run."""
    if run.settings is not None:
        raise ValueError(
            f"The run in {str(run.path)!r} has left no log yet: trainer_state.json is written with each checkpoint "
            "(save_steps) and at the end. Ask again then."
        )
    more = f" {' '.join(run.notes)}" if run.notes else ""
    raise ValueError(
        f"{str(run.path)!r} is no run: it holds no trainer_state.json, which a training writes with each checkpoint "
        f"and at its end, and no evaluation.{more} Name the output_dir of a training, or the --output of trl-fork "
        "evaluate."
    )


def default_output(runs: list[Run]) -> Path:
    """A folder in the first run, named after the others."""
    others = [re.sub(r"[^A-Za-z0-9._]+", "_", run.path.resolve().name) for run in runs[1:]]
    return runs[0].path / "-".join(["report", *others])[:100]


def next_steps(runs: list[Run], evaluations: list[Evaluation | None], numbers: dict, output: Path) -> str:
    """What to do after a report."""

    def command(*words) -> str:
        return f"    {shlex.join([*program(), *map(str, words)])}"

    page = (output / "report.html").resolve().as_uri()
    lines = ["Next:", f"  See it, in a browser: {page}"]
    missing = [run for run, found in zip(runs, evaluations, strict=True) if found is None and has_model(run)]
    for run in missing[:2]:
        settings = run.settings or {}
        data = settings.get("eval_dataset_name") or settings.get("dataset_name") or "DATA"
        limit = settings.get("max_completion_length")
        more = ["--max_new_tokens", limit] if limit else []
        lines += [
            "  Evaluate it, for its accuracy:",
            command("evaluate", "--model", run.path, "--dataset", data, *more, "--output", run.path / "evaluation"),
        ]
    if len(runs) < 2:
        lines += ["  Compare it with another run:", command("report", runs[0].path, "OTHER")]
    elif not numbers["tokens"] and all(map(has_model, runs)):
        folder = next((found.folder for found in evaluations if found is not None), runs[0].path / "evaluation")
        lines += [
            "  See which tokens gained or lost entropy (the models read the responses):",
            command("report", *(run.path for run in runs), "--completions", folder / COMPLETIONS),
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))


if __name__ == "__main__":
    main()

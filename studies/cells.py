"""
Runs of a study, one after the other or side by side: one line of results for each, written when it ends.

To be imported before transformers: it sets what the libraries of a run read from the environment.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar


os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process per run uses a computer better than a run on all cores

from rich.console import Console
from tqdm import tqdm


console = Console()
Run = TypeVar("Run", bound=Hashable)


def add_run_options(parser: argparse.ArgumentParser, arms: Sequence[str], results: Path) -> None:
    """
    Options that the commands of all studies have.

    Args:
        parser (`argparse.ArgumentParser`): Parser of a command.
        arms (`Sequence[str]`): Names of the study's arms.
        results (`Path`): The study's own folder of results.
    """
    parser.add_argument("--arms", nargs="+", choices=list(arms), default=list(arms), help="runs of these arms only")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--results", type=Path, default=results, help="folder of the results")
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("outputs/study"),
        help="folder of the warmed-up models, which studies share",
    )
    parser.add_argument("--only", help="one cell, as the progress bar names it: run it again and compare")


def read_rows(path: Path) -> list[dict]:
    """Lines of a file of results; a last one that was cut off does not count."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def run_cells(
    cells: Sequence[Hashable],
    rows: Sequence[dict],
    path: Path,
    workers: int,
    *,
    cell_of: Callable[[dict], Hashable],
    run_cell: Callable[..., dict],
    arguments: tuple = (),
) -> None:
    """
    Make the runs that are not in a file of results yet, and append them.

    Args:
        cells (`Sequence`): The runs that are wanted.
        rows (`Sequence[dict]`): Lines of the file.
        path (`Path`): The file.
        workers (`int`): Runs at a time.
        cell_of (`Callable`): Function from a line to the run that it belongs to.
        run_cell (`Callable`): Function from a run and `arguments` to its line, with `"accuracy"` and
            `"processor_seconds"`. It is called in processes of their own.
        arguments (`tuple`, *optional*): Further arguments of it.
    """
    done = {cell_of(row) for row in rows}
    todo = [cell for cell in cells if cell not in done]
    console.print(f"{len(cells) - len(todo)} of {len(cells)} runs are in {path} already.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # a line that was cut off would spoil the next one
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    bar = tqdm(total=len(todo), unit="run")
    # Processes of their own: PyTorch's threads do not survive a fork.
    with (
        path.open("a") as file,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        futures = {pool.submit(run_cell, cell, *arguments): cell for cell in todo}
        for future in as_completed(futures):
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            bar.write(f"{futures[future]}  accuracy {row['accuracy']:.3f}  {row['processor_seconds']:.0f} s")
            bar.update()


def pick(cells: Sequence[Run], name: str, stage: str) -> Run:
    """The run of a stage that has a name; without one the process ends."""
    for cell in cells:
        if str(cell) == name:
            return cell
    example = f" It has, for example, {str(cells[0])!r}." if cells else ""
    sys.exit(f"Stage {stage} has no cell {name!r}.{example}")


def compare(row: dict, rows: Sequence[dict], cell_of: Callable[[dict], Hashable], measures: Sequence[str]) -> None:
    """Print a run that was made again beside its line of results."""
    earlier = next((old for old in rows if cell_of(old) == cell_of(row)), None)
    for name in measures:
        recorded = "not there" if earlier is None else f"{earlier[name]:.4g}"
        console.print(f"{name:16} now {row[name]:.4g}, in the file {recorded}", highlight=False)

"""Options of the report's command."""

import argparse
from pathlib import Path

from .parts import PARTS


DESCRIPTION = """
Count what a run survives, and write the numbers of docs/reliability.md.

    python -m benchmarks.reliability                          # all parts: `make reliability`
    python -m benchmarks.reliability --part kills --seed 3    # one of them
    python -m benchmarks.reliability --quick                  # a few of each, which are not published

Results are written to benchmarks/results/reliability.json as they come, and the page from them at the end.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--number", type=int, help="how many, in place of the number of the report, which is kept")
    parser.add_argument("--quick", action="store_true", help="a few of each; only printed, unless --results is given")
    parser.add_argument("--results", type=Path, help="another file of results; the page is not written then")
    parser.add_argument("--folder", type=Path, help="folder for the runs, kept; by default one that is deleted")
    return parser.parse_args(arguments)

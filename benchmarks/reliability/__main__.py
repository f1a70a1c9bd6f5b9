"""
Count what a run survives, and write the numbers of docs/reliability.md.

    python -m benchmarks.reliability                          # all parts: `make reliability`
    python -m benchmarks.reliability --part kills --seed 3    # one of them
    python -m benchmarks.reliability --quick                  # a few of each, which are not published

Results are written to benchmarks/results/reliability.json as they come, and the page from them at the end.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import page
from .options import parse_arguments
from .parts import PARTS
from .record import RESULTS, Record


def run(name: str, options: argparse.Namespace, results: Path, folder: Path) -> bool:
    """Run one part; whether it came to its end."""
    part = PARTS[name]
    number = options.number or (part.quick if options.quick else part.number)
    print(f"{name}: {number} {part.title}", flush=True)
    record = Record(results, name, number, options.seed)
    begin = time.monotonic()

    def progress(text: str, found: dict | None = None) -> None:
        print(f"  {time.monotonic() - begin:6.0f} s  {text}", flush=True)
        if found is not None:
            record.write(found)

    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    try:
        found = part.module.run(number, options.seed, place, progress)
    except RuntimeError as error:
        print(f"{name}: not measured: {error}", flush=True)
        return False
    record.write(found, part.module.summary(found))
    print(f"{name}: {part.module.summary(found)} ({time.monotonic() - begin:.0f} s)", flush=True)
    return True


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    partial = options.quick or options.number is not None
    with tempfile.TemporaryDirectory(prefix="reliability-") as temporary:
        results = options.results or (Path(temporary) / "results.json" if partial else RESULTS)
        folder = (options.folder or Path(temporary) / "runs").resolve()
        done = [run(name, options, results, folder) for name in options.part]
        if results == RESULTS:
            page.write()
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())

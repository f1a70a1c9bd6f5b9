"""`python -m benchmarks.step`, as a script of the checkout."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.step import main


if __name__ == "__main__":
    main()

"""How this package is called from the shell at hand, for the commands that are printed."""

import os
import shutil
import sys
from pathlib import Path


PROGRAM = "trl-fork"


def program() -> list[str]:
    """Words that start `trl-fork`, also where the environment it is in has not been activated."""
    if shutil.which(PROGRAM):
        return [PROGRAM]
    script = Path(sys.executable).with_name(PROGRAM)
    return [_shortest(script)] if script.is_file() else [_shortest(Path(sys.executable)), "-m", "trl_fork"]


def _shortest(path: Path) -> str:
    return min(os.path.relpath(path), str(path), key=len)

"""The words that start this package in the current shell, for printed commands."""

import os
import shutil
import sys
from pathlib import Path


PROGRAM = "trl-fork"


def program() -> list[str]:
    """Words that start `trl-fork`, also if its environment is not activated."""
    if shutil.which(PROGRAM):
        return [PROGRAM]
    script = Path(sys.executable).with_name(PROGRAM)
    return [_shortest(script)] if script.is_file() else [_shortest(Path(sys.executable)), "-m", "trl_fork"]


def _shortest(path: Path) -> str:
    return min(os.path.relpath(path), str(path), key=len)

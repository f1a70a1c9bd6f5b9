"""The file of results: what was found by each part, where, and by which commit."""

import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "huggingface-hub", "math-verify")


def installed() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> dict:
    """The commit of the checkout, and whether its package or this report differ from it."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--", "trl_fork", "configs", "tests", "benchmarks/reliability")
    return {"commit": git("rev-parse", "HEAD"), "changed_since": bool(changed)}


def load(path: Path = RESULTS) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


class Record:
    """
    One part of the file, written anew at every progress, so that a report that is cut off leaves what it has found.

    Args:
        path (`Path`): The file. Parts of other names stay in it.
        name (`str`): Name of the part.
        number, seed (`int`): What was asked for.
    """

    def __init__(self, path: Path, name: str, number: int, seed: int):
        self.path, self.name = path, name
        self.begin = time.monotonic()
        self.header = {
            **commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "versions": installed(),
            "cores": len(os.sched_getaffinity(0)),
            "number": number,
            "seed": seed,
        }

    def write(self, found: dict, summary: str | None = None) -> None:
        results = load(self.path)
        results[self.name] = {
            **self.header,
            "seconds": round(time.monotonic() - self.begin, 1),
            "complete": summary is not None,
            "summary": summary,
            "found": found,
        }
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(self.path)

"""Pushes to a Hub that refuses (401), fails (503) and cuts connections, at each of its requests: is anything lost?"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from .record import ROOT


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """`number` pushes, see [`parts`]."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    found: dict = {"pushes": []}
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reliability.push_worker", str(folder), str(number), str(seed)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        for line in process.stdout or ():
            if line.startswith('{"number"'):  # the trainer prints its logs too
                found["pushes"].append(json.loads(line))
                if len(found["pushes"]) % 8 == 0:
                    progress(f"{len(found['pushes'])}/{number}", found)
        process.wait()
    if len(found["pushes"]) < number:
        found["tail"] = (folder / "log.txt").read_text()[-1500:]
    return found


def summary(found: dict) -> str:
    pushes = found["pushes"]
    counted = Counter(str(answer) for push in pushes for answer, _ in push["failures"].values())
    lost = sum(bool(push["lost"]) for push in pushes)
    here = sum(not push["kept_here"] for push in pushes)
    through = sum(push["pushed"] for push in pushes)
    silent = sum(not push["said"] for push in pushes)
    return (
        f"{len(pushes)} pushes with {', '.join(f'{n} times {name}' for name, n in sorted(counted.items()))}: "
        f"{through} "
        f"got through by themselves, {len(pushes) - through} by the command or the push that followed, {lost} lost a "
        f"file there and {here} here, {silent} failed without saying so"
    )

"""Steps on two processes of which one has nothing to train on, much less than the other, or nothing to learn from."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .kills import end
from .record import ROOT


PATIENCE = 900  # seconds, on a busy machine
COMMAND = (
    *("-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"),
    *(
        "--mixed_precision",
        "no",
        "--config_file",
        "configs/accelerate/ddp.yaml",
        "-m",
        "benchmarks.reliability.uneven",
    ),
)


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """`number` steps, see [`parts`]."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *COMMAND, str(folder / "run"), str(number), str(seed)],
            cwd=ROOT, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            end(process)
            status = None
    path = folder / "run" / "result.json"
    found = {"hung": status is None, "exit_status": status}
    if path.exists():
        return found | json.loads(path.read_text())
    return found | {"steps": 0, "processes": 2, "kinds": {}, "tail": (folder / "log.txt").read_text()[-1000:]}


def summary(found: dict) -> str:
    if not found["steps"]:
        return f"no result (exit status {found['exit_status']})"
    return (
        f"{found['steps']} steps on {found['processes']} processes, {'a hang' if found['hung'] else 'no hang'}, "
        f"weights {'equal' if found['equal_weights'] else 'DIFFERENT'} on both and "
        f"{'finite' if found['finite'] else 'NOT finite'}, the slowest step {found['slowest_step']:.1f} s"
    )

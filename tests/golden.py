"""
Weights after training, as hashes: a change of the code's structure must not move one bit of them.

    make golden FILE=before.json      then the change, then
    make golden FILE=after.json       and `diff before.json after.json`

A plugin of pytest: the key is a test's name and how many runs it has made before, the value the SHA-256 of the
weights when `train()` returns. Run as a script, it adds those of 20 steps of the quickstart. Hashes of two machines
or two numbers of threads differ.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch


def weights_hash(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def pytest_addoption(parser):
    parser.addoption("--golden", metavar="FILE", help="write the hashes of trained weights to FILE")


def pytest_configure(config):
    if config.getoption("--golden"):
        config.pluginmanager.register(Recorder(config.getoption("--golden")))


class Recorder:
    def __init__(self, path):
        self.path, self.hashes, self.runs = Path(path), {}, Counter()

    def pytest_sessionstart(self):
        from trl import GRPOTrainer

        inner, recorder = GRPOTrainer.train, self

        def train(trainer, *args, **kwargs):
            result = inner(trainer, *args, **kwargs)
            # A test may have moved to another folder in between.
            test = os.environ["PYTEST_CURRENT_TEST"].split("/")[-1].split(" ")[0]
            recorder.hashes[f"{test} {recorder.runs[test]}"] = weights_hash(dict(trainer.model.named_parameters()))
            recorder.runs[test] += 1
            return result

        GRPOTrainer.train = train

    def pytest_sessionfinish(self):
        self.path.write_text(json.dumps(self.hashes, indent=1, sort_keys=True) + "\n")


def add_quickstart(path: Path) -> None:
    from safetensors.torch import load_file

    quickstart = Path(__file__).parent.parent / "examples" / "quickstart.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, quickstart, "--output_dir", f"{folder}/run", "--max_steps", "20"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found = {str(file.parent.relative_to(folder)): file for file in Path(folder).rglob("model.safetensors")}
        hashes = json.loads(path.read_text())
        hashes |= {f"quickstart {name}": weights_hash(load_file(file)) for name, file in found.items()}
    path.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--golden", required=True, type=Path)
    parser.add_argument("--quickstart", action="store_true", required=True)
    add_quickstart(parser.parse_args().golden)

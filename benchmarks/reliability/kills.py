"""
SIGKILL at random moments of a training under ZeRO-3, and each resumed run against the one that was not killed.

The run has dynamic sampling, a schedule of its credit rule, an evaluation now and then, and a checkpoint at every step.
A moment is drawn from the time line of the run that is not killed, as a step and the seconds after its begin, so that it
falls there on a busy machine too; the processes say what they were doing.
"""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from .mortal import IMPORT, SET_UP


ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
PATIENCE = 240  # seconds for a whole run, and for the rest of a run of which one process is dead
VICTIMS = ("the first process", "the second process", "both processes and the launcher")
BEFORE_TRAINING = 0.15  # share of kills that fall before the first step, which takes as long as all steps
# Of a log or a state: what a clock says, and the mean loss at the end, which transformers sums over the steps since the
# run was resumed.
LEFT_OUT = ("time", "runtime", "per_second", "train_loss")
COMMAND = (
    *("-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"),
    *("--config_file", "tests/distributed/zero3_strict.yaml", "-m", "benchmarks.reliability.mortal"),
)
SETTINGS = {
    "dataset_name": "tests/files/gsm8k.jsonl",
    "eval_dataset_name": "{folder}/evaluation.jsonl",
    "reward_funcs": "benchmarks.reliability.mortal.reward",
    "token_credit": '{"top_fraction": {"fraction": {"linear": [0.1, 1.0, 0.8]}}}',
    "dynamic_sampling": "true",
    "use_cpu": "true",
    "bf16": "false",
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 0.003,
    "save_steps": 1,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
    "report_to": "none",
    "seed": 42,
}


def prepare(folder: Path) -> None:
    """The model and the evaluation data of all runs."""
    from tests.conftest import build_model
    from tests.trainer.test_features import byte_tokenizer

    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = (ROOT / "tests/files/gsm8k_test.jsonl").read_text().splitlines()[:2]
    (folder / "evaluation.jsonl").write_text("\n".join(lines) + "\n")


def start(folder: Path, name: str, *more: str) -> subprocess.Popen:
    """Start a run in `folder/name`; its output goes to `folder/name.log`."""
    settings = {"model_name_or_path": "{folder}/model", **SETTINGS, "output_dir": f"{folder}/{name}"}
    words = [
        word for key, value in settings.items() for word in (f"--{key}", str(value).replace("{folder}", str(folder)))
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.pop("WORLD_SIZE", None)
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *COMMAND, f"{folder}/{name}.diary", *words, *more],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )


def end(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all that it started: torch's launcher gives every process a session of its own."""
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in family:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            pass
    process.wait()


def finish(process: subprocess.Popen) -> int | None:
    """Exit status of a run; `None` if it had to be ended, because it hung."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        end(process)
        return None


def diary(folder: Path, name: str, rank: int = 0) -> list[tuple[float, int, str]]:
    """Seconds, step and activity of each line that a process has written."""
    path = folder / f"{name}.diary" / f"activity.{rank}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(seconds), int(step), what) for seconds, step, what in (line.split(" ", 2) for line in lines)]


def shares(entries: list[tuple[float, int, str]]) -> dict[str, float]:
    """Seconds that a run spent with each activity."""
    seconds: Counter = Counter()
    for (begin, _, what), (until, _, _) in pairwise(entries):
        seconds[what] += until - begin
    return dict(seconds)


def moments(entries: list[tuple[float, int, str]], begin: float) -> list[tuple[int, float, float]]:
    """
    The time line of a run: a number for each part of it, and the second at which it begins and ends.

    Part -1 is what comes before the training, part `k` what comes after `k` steps.
    """
    training = next(seconds for seconds, _, what in entries if what not in (IMPORT, SET_UP))
    found = [(-1, begin, training)]
    for step in range(STEPS + 1):
        of_step = [seconds for seconds, at, what in entries if at >= step and what not in (IMPORT, SET_UP)]
        after = [seconds for seconds, at, what in entries if at > step]
        if of_step:
            found.append((step, of_step[0], after[0] if after else entries[-1][0]))
    return found


def draw(generator: random.Random, line: list[tuple[int, float, float]]) -> tuple[int, float]:
    """A moment: the part of the run, and seconds after the begin of that part. Uniform over the time of the training."""
    if generator.random() < BEFORE_TRAINING:
        _, begin, until = line[0]
        return -1, generator.uniform(0, until - begin)
    second = generator.uniform(line[1][1], line[-1][2])
    part, begin, _ = next(entry for entry in reversed(line) if entry[1] <= second)
    return part, second - begin


def wait_for(process: subprocess.Popen, folder: Path, name: str, part: int, seconds: float) -> None:
    begin = time.monotonic()
    while part >= 0 and process.poll() is None and time.monotonic() - begin < PATIENCE:
        if any(step >= part and what not in (IMPORT, SET_UP) for _, step, what in diary(folder, name)[-3:]):
            break
        time.sleep(0.005)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def kill(process: subprocess.Popen, victim: str) -> bool:
    """Send SIGKILL; whether there was anything to kill."""
    if process.poll() is not None:
        return False
    if victim == VICTIMS[2]:
        end(process)
        return True
    rank = str(VICTIMS.index(victim))
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.environ().get("RANK") == rank:
                child.kill()
                return True
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    end(process)  # the launcher has not started it yet
    return True


def left_by(folder: Path, name: str) -> dict:
    """All that a finished run leaves which must not depend on whether it was killed."""
    run = folder / name
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    found = {"weights": load_file(run / "model.safetensors"), "log": comparable(log)}
    last = run / f"checkpoint-{STEPS}"
    for path in sorted(last.rglob("*")):
        if path.suffix in (".pt", ".pth") and path.is_file():
            # Files of our own runs: DeepSpeed's hold more than tensors.
            found[str(path.relative_to(last))] = comparable(torch.load(path, map_location="cpu", weights_only=False))
    return found


def comparable(value):
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if not any(t in str(k) for t in LEFT_OUT)}
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    return value


def differences(found, expected, where: str = "") -> list[str]:
    """Places at which two values differ, to the bit; NaN equals NaN."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = [f"{where}/{key}" for key in found.keys() ^ expected.keys()]
        return names + [
            d
            for key in expected.keys() & found.keys()
            for d in differences(found[key], expected[key], f"{where}/{key}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return [
            d for i, pair in enumerate(zip(found, expected, strict=True)) for d in differences(*pair, f"{where}/{i}")
        ]
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        same = found.dtype == expected.dtype and found.shape == expected.shape
        same = same and found.numpy(force=True).tobytes() == expected.numpy(force=True).tobytes()
        return [] if same else [where]
    if hasattr(expected, "__dict__") and type(found) is type(expected):
        return differences(comparable(vars(found)), comparable(vars(expected)), where)
    if hasattr(expected, "tobytes") and hasattr(found, "tobytes"):
        return [] if found.tobytes() == expected.tobytes() else [where]
    return [] if repr(found) == repr(expected) else [where]


def one_kill(number: int, seed: int, folder: Path, line, expected: dict) -> dict | None:
    """
    Kill one run, resume it, compare it.

    Returns:
        `dict`: what was drawn, where it fell, what was resumed and whether the result is equal; `None` if the run was
        faster than the moment.
    """
    generator = random.Random(f"{seed} {number}")
    part, seconds = draw(generator, line)
    victim = generator.choice(VICTIMS)
    name = f"kill-{seed}-{number}"
    process = start(folder, name)
    wait_for(process, folder, name, part, seconds)
    rank = VICTIMS.index(victim) % 2
    killed = kill(process, victim)
    begin = time.monotonic()
    if not killed:
        return None
    where = diary(folder, name, rank)
    status = finish(process)
    record = {
        "number": number,
        "seed": seed,
        "victim": victim,
        "part": part,
        "seconds": round(seconds, 3),
        "step": where[-1][1] if where else 0,
        "activity": where[-1][2] if where else IMPORT,
        "hung": status is None,
        "ended_after": round(time.monotonic() - begin, 1),
        "checkpoints": sorted(
            (p.name for p in (folder / name).glob("checkpoint-*")), key=lambda n: int(n.split("-")[1])
        ),
    }
    log = folder / f"{name}.log"
    before = log.stat().st_size
    begin = time.monotonic()
    status = finish(start(folder, name, "--resume_from_checkpoint", "true"))
    said = log.read_text(errors="replace")[before:]
    record["resumed_from"] = next(
        (text.split("Continuing from ")[1].rstrip(".") for text in said.splitlines() if "Continuing from " in text),
        None,
    )
    record["skipped_half_written"] = "Half-written checkpoints are skipped" in said
    if status != 0 and "there is no complete checkpoint" in said:
        # What the message says: start again, in another directory.
        record["resumed_from"] = "the beginning"
        shutil.rmtree(folder / name, ignore_errors=True)
        status = finish(start(folder, name))
    elif record["resumed_from"]:
        record["resumed_from"] = Path(record["resumed_from"]).name
    record["exit_status"] = status
    record["resumed_in"] = round(time.monotonic() - begin, 1)
    record["differences"] = differences(left_by(folder, name), expected) if status == 0 else ["no result"]
    record["equal"] = not record["differences"]
    record["differences"] = record["differences"][:10]
    return record


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """`number` kills, see [`parts`]."""
    if importlib.util.find_spec("deepspeed") is None:
        raise RuntimeError("this part needs DeepSpeed: install the extra `deepspeed`")
    prepare(folder)
    begin = time.time()
    status = finish(start(folder, "whole"))
    if status != 0:
        raise RuntimeError(
            f"the run that is not killed ended with {status}:\n{(folder / 'whole.log').read_text()[-3000:]}"
        )
    whole = time.time() - begin
    expected = left_by(folder, "whole")
    entries = diary(folder, "whole")
    line = moments(entries, begin)
    rounds = [entry.get("dynamic_sampling/rounds") for entry in expected["log"]]
    fractions = [entry.get("credit/fraction") for entry in expected["log"]]
    found = {
        "steps": STEPS,
        "processes": 2,
        "whole_seconds": round(whole, 1),
        "seconds_by_activity": {what: round(s, 2) for what, s in shares(entries).items()},
        "compared": {name: len(value) for name, value in expected.items()},
        "sampling_rounds": [value for value in rounds if value is not None],
        "fractions": [value for value in fractions if value is not None],
        "kills": [],
        "too_late": 0,
    }
    progress(f"the run that is not killed took {whole:.0f} s", found)
    drawn = 0
    while len(found["kills"]) < number and drawn < 2 * number + 5:
        record = one_kill(drawn, seed, folder, line, expected)
        drawn += 1
        if record is None:
            found["too_late"] += 1
            progress(f"moment {drawn} came after the end of the run and is drawn again", found)
            continue
        found["kills"].append(record)
        if record["equal"]:
            shutil.rmtree(folder / f"kill-{seed}-{drawn - 1}", ignore_errors=True)
        progress(
            f"{len(found['kills'])}/{number}: {record['victim']} in {record['activity']} after step {record['step']}, "
            f"resumed from {record['resumed_from']}, {'equal' if record['equal'] else 'DIFFERENT'}",
            found,
        )
    return found


def summary(found: dict) -> str:
    kills = found["kills"]
    equal = sum(record["equal"] for record in kills)
    hung = sum(record["hung"] for record in kills)
    return f"{len(kills)} kills, {equal} resumed runs equal to the bit, {hung} left a process that hung"

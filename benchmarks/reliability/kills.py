"""
SIGKILL at random moments of a training under ZeRO-3, and the resumed run against one that was not killed.

The run has dynamic sampling, a schedule of its credit rule, an evaluation now and then, and a checkpoint at every
step. A moment is drawn from the time line of the run that is not killed, as a step and the seconds after its begin, so
that it falls there on a busy machine too; the processes say what they were doing. A run is killed four times, and
resumed four times: one resumed wrongly would end differently.
"""

import contextlib
import importlib.util
import json
import os
import random
import re
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
PATIENCE = 600  # seconds, on a busy machine, for a whole run, and for what is left of one after a kill
VICTIMS = ("the first process", "the second process", "both processes and the launcher")
BEFORE_TRAINING = 0.15  # share of kills that fall into the imports and the set-up, which take as long as all steps
KILLS_OF_A_LIFE = 4
# Of a log or a state: what a clock says, and the mean loss at the end, which transformers sums over the steps since
# the run was resumed.
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


def start(folder: Path, name: str, launch: int = 0, *more: str) -> subprocess.Popen:
    """Start a run in `folder/name`, for the so manieth time; its output goes to `folder/name.log`."""
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
            [sys.executable, *COMMAND, f"{folder}/{name}.{launch}.diary", *words, *more],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )


def end(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all that it started: torch's launcher gives every process a session of its own."""
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
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
    """A moment of the training, uniform over its time: the part of the run, and seconds after the part's begin."""
    second = generator.uniform(line[1][1], line[-1][2])
    part, begin, _ = next(entry for entry in reversed(line) if entry[1] <= second)
    return part, second - begin


def wait_for(process: subprocess.Popen, folder: Path, name: str, part: int, seconds: float) -> None:
    begin = time.monotonic()
    while part >= 0 and process.poll() is None and time.monotonic() - begin < PATIENCE:
        if any(step >= part and what not in (IMPORT, SET_UP) for _, step, what in diary(folder, name)[-3:]):
            break
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


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


def one_life(number: int, seed: int, kills: int, folder: Path, line, expected: dict) -> dict:
    """
    A run that is killed some times, each time resumed, at last to its end, and compared with the whole one.

    Returns:
        `dict`: `kills`, what was drawn for each and where it fell, and whether the result is equal.
    """
    generator = random.Random(f"{seed} {number}")
    name = f"life-{seed}-{number}"
    log = folder / f"{name}.log"
    drawn = sorted(draw(generator, line) for _ in range(kills))
    found: dict = {"number": number, "seed": seed, "kills": [], "too_late": 0}
    resume: tuple[str, ...] = ()
    said_before = 0
    for launch in range(kills + 1):
        last = launch == kills
        begin = time.monotonic()
        process = start(folder, name, launch, *resume)
        record = None if last else kill_at(process, folder, f"{name}.{launch}", line, drawn[launch], generator)
        status = finish(process) if record is None else None
        said = log.read_text(errors="replace")[said_before:]
        said_before += len(said)
        continued = re.findall(r"Continuing from (.*)\.$", said, flags=re.MULTILINE)
        if launch:
            found["kills"][-1] |= {
                "resumed_from": Path(continued[0]).name if continued else found["kills"][-1].get("resumed_from"),
                "skipped_half_written": "Half-written checkpoints are skipped" in said,
                "seconds_of_resumed": round(time.monotonic() - begin, 1),
            }
        if record is None:
            found["too_late"] += not last
            break
        complete = sum(1 for _ in (folder / name).glob("checkpoint-*/trainer_state.json"))
        found["kills"].append(record | {"complete_checkpoints": complete})
        # Without a complete checkpoint the command says to start again, in another directory: here, in an empty one.
        resume = ("--resume_from_checkpoint", "true") if complete else ()
        if not complete:
            found["kills"][-1]["resumed_from"] = "the beginning"
            shutil.rmtree(folder / name, ignore_errors=True)
    found["exit_status"] = status
    found["differences"] = differences(left_by(folder, name), expected) if status == 0 else ["no result"]
    found["equal"] = not found["differences"]
    found["differences"] = found["differences"][:10]
    if found["equal"]:
        shutil.rmtree(folder / name, ignore_errors=True)
    return found


def kill_at(
    process, folder: Path, name: str, line, moment: tuple[int, float], generator: random.Random
) -> dict | None:
    """Kill a run at a moment, or with some probability before its training begins; `None` if it ended before."""
    if generator.random() < BEFORE_TRAINING:
        moment = (-1, generator.uniform(0, line[0][2] - line[0][1]))
    victim = generator.choice(VICTIMS)
    wait_for(process, folder, name, *moment)
    if not kill(process, victim):
        return None
    begin = time.monotonic()
    where = diary(folder, name, VICTIMS.index(victim) % 2)
    hung = finish(process) is None
    return {
        "victim": victim,
        "part": moment[0],
        "seconds": round(moment[1], 3),
        "step": where[-1][1] if where else 0,
        "activity": where[-1][2] if where else IMPORT,
        "hung": hung,
        "ended_after": round(time.monotonic() - begin, 1),
    }


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
    entries = diary(folder, "whole.0")
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
        "lives": [],
    }
    progress(f"the run that is not killed took {whole:.0f} s", found)
    done = 0
    while done < number and len(found["lives"]) < number:
        life = one_life(len(found["lives"]), seed, min(KILLS_OF_A_LIFE, number - done), folder, line, expected)
        found["lives"].append(life)
        done += len(life["kills"])
        for record in life["kills"]:
            progress(
                f"{record['victim']}, {record['activity']}, after step {record['step']}; resumed from "
                f"{record['resumed_from']}"
            )
        progress(f"{done}/{number}: the resumed run is {'equal' if life['equal'] else 'DIFFERENT'}", found)
    return found


def summary(found: dict) -> str:
    kills = [record for life in found["lives"] for record in life["kills"]]
    equal = sum(life["equal"] for life in found["lives"])
    hung = sum(record["hung"] for record in kills)
    return (
        f"{len(kills)} kills in {len(found['lives'])} runs, resumed after each; {equal} of the runs equal to the bit "
        f"at the end; {hung} kills left a process that hung"
    )

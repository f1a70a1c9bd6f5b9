"""
Bad configurations through `trl-fork train`: is each refused, before anything is loaded, by the name of the option?

A model folder without weights stands in for the model. A configuration that is refused only when the weights are
missing counts as not refused, and so does one whose refusal is a traceback.
"""

import contextlib
import io
import os
import random
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import yaml

from .bad_configurations import Bad, run_of, write_files, written
from .drawn_configurations import KINDS, Drawing
from .record import ROOT


IN_PROCESSES = 3  # of them are run as a user does, in a process of their own, for the time


def choose(number: int, seed: int) -> list[Bad]:
    """So many mistakes: those that are written down and as many drawn ones as are missing, or a draw of all kinds."""
    found = written()
    drawing = Drawing(seed)
    if number < len(found) + len(KINDS):
        found += [drawing.draw(kind) for kind in KINDS]
        random.Random(seed).shuffle(found)
        return found[:number]
    kinds = [KINDS[n % len(KINDS)] for n in range(number - len(found))]
    return found + [drawing.draw(kind) for kind in kinds]


def command_of(bad: Bad, folder: Path, number: int) -> list[str]:
    """Words after `trl-fork`. The run goes into a file, unless the mistake is one of files."""

    def filled(value):
        if isinstance(value, str):
            return value.replace("{folder}", str(folder))
        return value

    settings = {name: value for name, value in run_of(folder).items() if name not in bad.without}
    settings |= {name: filled(value) for name, value in bad.settings.items()}
    words = [filled(word) for word in bad.words]
    if {"--config", "--recipe"} & set(words):
        return ["train", *words]
    path = folder / "files" / f"{number}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return ["train", "--config", str(path), *words]


def in_this_process(words: list[str]) -> tuple[int, str]:
    """Exit status and what was printed; a traceback is printed as Python would."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from trl_fork.commands.dispatch import main

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                output.write(end.code)
        except BaseException:
            status = 1
            output.write(traceback.format_exc())
    return status, output.getvalue()


def in_a_process(words: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "trl_fork", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stderr


def names(message: str, name: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", message) is not None


def judge(bad: Bad, status: int, printed: str) -> str:
    """`"refused"`, or what is wrong."""
    if status == 0:
        return "not refused"
    if "Traceback (most recent call last)" in printed:
        return "a traceback"
    error = printed[printed.find("error: ") :]
    missing = [name for name in bad.names if not names(error, name)]
    return f"does not name {', '.join(missing)}" if missing else "refused"


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """`number` mistakes, see [`parts`]."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    before = os.environ.get("TRANSFORMERS_VERBOSITY")
    write_files(folder)
    mistakes = choose(number, seed)
    records = []
    kinds: Counter = Counter()
    found = {"kinds": {}, "not_refused": [], "seconds_each": [], "process_seconds": []}
    for index, bad in enumerate(mistakes):
        words = command_of(bad, folder, index)
        begin = time.perf_counter()
        status, printed = in_this_process(words)
        seconds = time.perf_counter() - begin
        verdict = judge(bad, status, printed)
        if verdict == "refused" and (folder / "run").exists():
            verdict = "refused, but it left files in output_dir"
        kinds[bad.kind] += 1
        of_kind = found["kinds"].setdefault(bad.kind, {"number": 0, "refused": 0})
        of_kind["number"] += 1
        of_kind["refused"] += verdict == "refused"
        found["seconds_each"].append(round(seconds, 3))
        records.append((seconds, bad))
        if verdict != "refused":
            found["not_refused"].append(
                {
                    "kind": bad.kind,
                    "names": bad.names,
                    "words": [word.replace(str(folder), "FOLDER") for word in bad.words],
                    "settings": {name: repr(value) for name, value in bad.settings.items()},
                    "verdict": verdict,
                    "printed": printed.strip().replace(str(folder), "FOLDER")[-600:],
                }
            )
        if (index + 1) % 25 == 0 or index + 1 == len(mistakes):
            progress(f"{index + 1}/{len(mistakes)}, {len(found['not_refused'])} not refused as they should be", found)
    for index in random.Random(seed).sample(range(len(mistakes)), min(IN_PROCESSES, max(1, number // 40))):
        begin = time.perf_counter()
        status, printed = in_a_process(command_of(mistakes[index], folder, index))
        found["process_seconds"].append(round(time.perf_counter() - begin, 1))
        verdict = judge(mistakes[index], status, printed)
        progress(f"in a process of its own: {mistakes[index].kind}, {verdict}", found)
    if before is not None:
        os.environ["TRANSFORMERS_VERBOSITY"] = before
    return found


def summary(found: dict) -> str:
    number = sum(kind["number"] for kind in found["kinds"].values())
    refused = sum(kind["refused"] for kind in found["kinds"].values())
    seconds = sorted(found["seconds_each"])
    return (
        f"{refused} of {number} refused by the name of the option, in {seconds[len(seconds) // 2]:.2f} s each, the "
        f"slowest in {seconds[-1]:.1f} s, beside the import"
    )

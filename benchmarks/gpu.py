"""
What needs a GPU, in one script of eight minutes at most: tests on CUDA, time and memory of a step against TRL.

    make gpu                                    # on a machine whose python3 has PyTorch with CUDA and transformers
    make gpu ARGS="--only step_inert memory"    # some of the parts
    make gpu ARGS=--dry_run                     # on the CPU, with a tiny model: does every part run?

Parts run one after the other, the most valuable first, each in a process of its own that is killed at its limit, or
where the budget ends. `benchmarks/results/gpu.json` is written after every part, and `docs/gpu.md` from it at the end.
A part that fails does not stop the next. Packages that the machine lacks are taken from a folder of wheels
(`make gpu-wheels`) and installed beside its own, without a network; see `gpu_environment.py`.
"""

import argparse
import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import xml.etree.ElementTree
from datetime import UTC, datetime
from pathlib import Path

from trl_fork._files import write_text

from . import gpu_page
from .gpu_parts import BUDGET, PARTS, RESULTS, Part


ROOT = Path(__file__).resolve().parents[1]
GRACE = 3  # seconds in which a process that is aborted says where it was
LEAST = 8  # seconds: less is not enough to import PyTorch
TAIL = 6000  # characters kept of what a part printed
SAME = ("card", "driver", "versions", "commit", "dry_run")  # of results that may stand side by side


# ---------------------------------------------------------------------- one part


def run_part(part: Part, seconds: float, environment: dict, folder: Path, *, dry_run: bool, **places) -> dict:
    """
    Run a command for at most so many seconds.

    Returns:
        `dict`: `command`, `seconds`, `limit`, `status` (`"ok"`, `"failed"` or `"timeout"`), `numbers` (what it left,
        as far as it came, or `None`) and `tail`, the end of what it printed.
    """
    output, log = folder / f"{part.name}.out", folder / f"{part.name}.log"
    words = [word.format(output=output, **places) for word in shlex.split(f"{part.command} {part.dry * dry_run}")]
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "failed" if process.wait(seconds) else "ok"
        except subprocess.TimeoutExpired:
            status = "timeout"
            signal_group(process, signal.SIGABRT)  # Python prints where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            signal_group(process, signal.SIGKILL)
            process.wait()
    elapsed = time.perf_counter() - start
    hidden = {str(output): "OUTPUT", str(folder): "FOLDER", str(ROOT): ".", sysconfig.get_path("purelib"): "SITE"}
    numbers = json.loads(without_paths(json.dumps(read_report(output, part.report)), hidden))
    if status == "ok" and (not numbers or numbers.get("passed") == 0):
        status = "failed"  # a test that is skipped has shown nothing
    return {
        "command": without_paths(shlex.join(["python", *words]), hidden),
        "seconds": round(elapsed, 1),
        "limit": round(seconds, 1),
        "status": status,
        "numbers": numbers,
        "tail": without_paths(without_modules(log.read_text(errors="replace")), hidden)[-TAIL:],
    }


def signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def without_paths(text: str, hidden: dict[str, str]) -> str:
    for path, name in hidden.items():
        text = text.replace(path, name)
    return text


def without_modules(text: str) -> str:
    """Without the list of compiled modules that ends what Python prints when it is aborted."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("Extension modules: "))


def read_report(path: Path, kind: str) -> dict | None:
    """What a command has left, `None` if that is nothing or was cut off."""
    try:
        return json.loads(path.read_text()) if kind == "json" else read_junit(path)
    except (OSError, ValueError, xml.etree.ElementTree.ParseError):
        return None


def read_junit(path: Path) -> dict:
    """Counts, names of the tests that did not pass, and what tests have recorded."""
    cases = list(xml.etree.ElementTree.parse(path).iter("testcase"))
    bad = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    items = [(case.get("name"), item) for case in cases for item in case.iter("property")]
    recorded = {f"{name}: {item.get('name')}": item.get("value") for name, item in items}
    return {"passed": len(cases) - len(bad) - skipped, "skipped": skipped, "failed": bad, "recorded": recorded}


# ---------------------------------------------------------------------- all parts


def run_parts(parts, budget: float, keep, **settings) -> dict:
    """
    Run parts until they are done or the seconds of `budget` are spent.

    Args:
        parts: The parts; each gets its limit, or the time that is left.
        keep (`Callable`): Called with all records, by name, after every part; what it returns, if anything, is why the
            parts that are left are skipped.
        **settings: Arguments of [`run_part`].
    """
    begin, records, reason = time.perf_counter(), {}, None
    for part in parts:
        left = budget - (time.perf_counter() - begin) - GRACE
        if reason is None and left < min(LEAST, part.limit):
            reason = f"{max(left, 0):.0f} of the {budget:.0f} seconds were left"
        if reason is not None:
            records[part.name] = {"command": part.command, "seconds": 0.0, "status": "skipped", "reason": reason}
        else:
            print(f"\n== {part.name}: {part.title}, at most {min(part.limit, left):.0f} s", flush=True)
            records[part.name] = run_part(part, min(part.limit, left), **settings)
            print(records[part.name]["tail"].rstrip())
        print(f"== {part.name}: {records[part.name]['status']}, {records[part.name]['seconds']} s", flush=True)
        reason = keep(records) or reason
    return records


def header(record: dict, options: argparse.Namespace) -> dict:
    """What the results of all parts have in common, from the record of the part `environment`."""
    found = record.get("numbers") or {}
    names = ("card", "card_memory", "compute_capability", "driver", "cuda", "python", "versions")
    return {
        "schema": 1,
        "dry_run": options.dry_run,
        **{name: found.get(name) for name in names},
        "commit": options.commit or commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "budget": options.budget,
    }


def commit() -> str | None:
    """Commit of the checkout, with a `+` if files differ from it; `None` without a checkout."""

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS[1:]]
    parser.add_argument("--only", nargs="+", choices=names, help="these parts; the results keep the others'")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts together")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".gpu-wheels", help="folder of `make gpu-wheels`")
    parser.add_argument("--commit", help="what to record where the machine has no git; by default what git says")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="a tiny model on the CPU; never published")
    parser.add_argument("--output", type=Path, help="JSON file; by default benchmarks/results/gpu.json")
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = ROOT / "outputs" / "gpu_dry_run.json" if options.dry_run else RESULTS
    if options.dry_run and options.output.resolve() == RESULTS:
        parser.error(f"--output {options.output}: a dry run says nothing about a GPU, and is not published")
    return options


def environment_of_parts(options: argparse.Namespace, target: Path) -> dict:
    """One GPU, or none in a dry run; no network; the wheels' packages before the machine's, ours before both."""
    path = [str(ROOT), str(target), os.environ.get("PYTHONPATH", "")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # Tensors of a dry run are tiny: more threads only wait for each other.
    threads = {"OMP_NUM_THREADS": "1"} if options.dry_run else {}
    return {
        **os.environ,
        **threads,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "" if options.dry_run else visible,
        "GPU_TESTS_DEVICE": "cpu" if options.dry_run else "cuda",
    }


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    earlier = json.loads(options.output.read_text()) if options.only and options.output.exists() else None
    parts = [PARTS[0], *(part for part in PARTS[1:] if not options.only or part.name in options.only)]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a process that is aborted leaves no gigabytes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is killed too
    common: dict = {}  # empty where nothing may be written

    def keep(records):
        if len(records) == 1:
            found = header(records["environment"], options)
            if not (found["card"] or options.dry_run):
                return "PyTorch finds no CUDA device here; --dry_run tries the parts on the CPU"
            if changed := [name for name in SAME if earlier and earlier[name] != found[name]]:
                return f"{options.output} has results of another {', '.join(changed)}; --output names another file"
            common.update(found)
        if common:
            kept = {**(earlier or {}).get("parts", {}), **records}
            write_text(options.output, json.dumps({**common, "parts": kept}, indent=2) + "\n")
        return None

    with tempfile.TemporaryDirectory() as folder:
        # dill, with which datasets makes fingerprints, takes packages for installed by this word in their path, and
        # pickles the others whole.
        target = Path(folder) / "site-packages"
        records = run_parts(
            parts,
            options.budget,
            keep,
            environment=environment_of_parts(options, target),
            folder=Path(folder),
            dry_run=options.dry_run,
            wheels=options.wheels,
            target=target,
        )
    if common and options.output.resolve() == RESULTS:
        gpu_page.write()
    print()
    for name, record in records.items():
        print(f"{name:<12} {record['status']:<8} {record['seconds']:>6} s  {record.get('reason', '')}")
    if common:
        print(f"Results: {options.output}")
    return int(any(record["status"] != "ok" for record in records.values()))


if __name__ == "__main__":
    sys.exit(main())

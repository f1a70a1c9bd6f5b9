"""
The machine of `gpu.py`: its card and its versions, after the packages that are missing were installed from wheels.

    python -m benchmarks.gpu_environment --output environment.json [--wheels .gpu-wheels --target FOLDER]

Wheels go to a folder of their own, without a network and without their dependencies: what the machine has is used, and
what must not be exchanged (PyTorch and what comes with it) is never installed. A wheel is installed where its package
is missing, or too old for `setup.cfg` or for another wheel that is installed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


ROOT = Path(__file__).resolve().parents[1]
REPORTED = ("torch", "triton", "transformers", "trl", "accelerate", "peft", "datasets")
KEPT = {"torch", "triton", "transformers"}


def requirements() -> list[Requirement]:
    """What the package requires, and what its tests do, but for what only analyses and pictures import."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [*config["options"]["install_requires"].split(), "pytest>=8", "pytest-timeout>=2.3"]
    return [rule for rule in map(Requirement, lines) if rule.name not in ("matplotlib", "scipy")]


def installed_version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def required_by(wheel: Path) -> list[Requirement]:
    (metadata,) = distributions(path=[str(wheel)])
    found = [Requirement(line) for line in metadata.requires or []]
    return [rule for rule in found if not rule.marker or rule.marker.evaluate({"extra": ""})]


def choose(wheels: list[Path], installed=installed_version) -> list[Path]:
    """
    The wheels to install, of each package the newest.

    Args:
        wheels (`list[Path]`): Those that were carried.
        installed (`Callable`, *optional*): Gives the version of a package, `None` where it is missing.
    """
    newest: dict[str, tuple[Version, Path]] = {}
    for wheel in wheels:
        name, version = canonicalize_name(wheel.name.split("-")[0]), Version(wheel.name.split("-")[1])
        if name not in KEPT and not name.startswith("nvidia-"):
            newest[name] = max(newest.get(name, (version, wheel)), (version, wheel))
    rules, chosen = requirements(), {}
    while True:
        more = {
            name: wheel
            for name, (_, wheel) in newest.items()
            if name not in chosen and not is_met(name, rules, installed(name))
        }
        if not more:
            return list(chosen.values())
        chosen |= more
        rules += [rule for wheel in more.values() for rule in required_by(wheel)]


def is_met(name: str, rules: list[Requirement], version: str | None) -> bool:
    return version is not None and all(
        rule.specifier.contains(version, prereleases=True) for rule in rules if canonicalize_name(rule.name) == name
    )


def install(wheels: list[Path], target: Path) -> None:
    """Offline, and whatever else this machine's pip is configured to do."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *map(str, wheels)],
        env={**environment, "PIP_CONFIG_FILE": os.devnull, "PIP_ROOT_USER_ACTION": "ignore"},
        check=True,
    )


def unmet() -> list[str]:
    """Requirements, direct or not, that this machine does not meet."""
    todo, seen, missing = requirements(), set(), []
    while todo:
        rule = todo.pop()
        if str(rule) in seen or (rule.marker and not rule.marker.evaluate({"extra": ""})):
            continue
        seen.add(str(rule))
        version = installed_version(rule.name)
        if not is_met(canonicalize_name(rule.name), [rule], version):
            missing.append(f"{rule.name}{rule.specifier}, found {version}")
        if version is not None:
            todo += [Requirement(line) for line in distribution(rule.name).requires or []]
    return sorted(missing)


def card() -> dict:
    """Name, memory and driver of the first GPU; `{"card": None}` without one."""
    import torch

    if not torch.cuda.is_available():
        return {"card": None}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = None
    return {
        "card": properties.name,
        "card_memory": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "cuda": torch.version.cuda,
    }


def rates(size: int) -> dict:
    """What the card does at best: bf16 operations of a matrix product per second, and bytes copied per second."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(size * size * 16, device="cuda", dtype=torch.uint8)
    work = {
        "bf16_operations_per_second": (lambda: a @ b, 2 * size**3),
        "copied_bytes_per_second": (source.clone, 2 * source.numel()),
    }
    found = {}
    for name, (call, amount) in work.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        found[name] = 20 * amount / (time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels; one that is not there holds none")
    parser.add_argument("--target", type=Path, help="folder to install into, which PYTHONPATH should name")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    found: dict = {"python": platform.python_version()}

    def keep(**more):  # as soon as it is known: a wheel that does not fit must not cost the card's name
        found.update(more)
        options.output.write_text(json.dumps(found, indent=2) + "\n")

    keep(**card())
    wheels = choose(sorted(options.wheels.glob("*.whl"))) if options.wheels and options.target else []
    keep(installed=[wheel.name for wheel in wheels])
    if wheels:
        install(wheels, options.target)
        sys.path.insert(0, str(options.target))
    keep(versions={name: installed_version(name) for name in REPORTED}, unmet=unmet())
    if found["card"]:
        keep(**rates(8192))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

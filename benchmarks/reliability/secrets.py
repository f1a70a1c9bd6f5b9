"""
Tokens of the environment, and one given as an option: are they in any file that a training, an evaluation, a page or a
push writes?
"""

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from urllib.parse import quote

from tests.hub_stand_in import TOKEN, HubStandIn

from .kills import prepare
from .record import ROOT


# What people have in their environment. The Hub's is that of the stand-in, and given as an option too.
SECRETS = {
    "HF_TOKEN": TOKEN,
    "HUGGING_FACE_HUB_TOKEN": TOKEN,
    "WANDB_API_KEY": "wandb1e5ecret2ad0a9b8c7d6e5f4a3b2c1d0e9f8a7b",
    "OPENAI_API_KEY": "sk-secretOfOpenaiThatMustNotLeak",
    "AWS_SECRET_ACCESS_KEY": "awsSecretThatMustNotLeak/+1234567890",
    "COMET_API_KEY": "cometSecretThatMustNotLeak",
    "MLFLOW_TRACKING_TOKEN": "mlflowSecretThatMustNotLeak",
    "GITHUB_TOKEN": "ghp_secretOfGithubThatMustNotLeak",
}


def shapes(secret: str) -> set[bytes]:
    """A secret as it may stand in a file: plain, quoted, backwards, in hexadecimal and base64 at each offset."""
    raw = secret.encode()
    found = {raw, raw[::-1], raw.hex().encode(), quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode()}
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + raw).rstrip(b"=")
        found.add(coded[4 if offset else 0 : -1])
    return found | {secret.encode("utf-16-le")}


def unpacked(content: bytes) -> list[bytes]:
    """A file, and what is packed in it: members of an archive, deflated data of a page."""
    found = [content]
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    if content[:2] == b"\x1f\x8b":
        found.append(zlib.decompress(content, 47))
    for piece in content.split(b'"') if b"<html" in content[:2000] else ():
        if piece.startswith(b"eJ"):  # zlib in base64
            try:
                found.append(zlib.decompress(base64.b64decode(piece)))
            except (ValueError, zlib.error):
                continue
    return found


def leaks(content: bytes) -> list[str]:
    parts = unpacked(content)
    return [name for name, secret in SECRETS.items() if any(s in part for s in shapes(secret) for part in parts)]


def commands(folder: Path) -> list[list[str]]:
    run = folder / "run"
    train = {
        "model_name_or_path": folder / "model", "dataset_name": "tests/files/gsm8k.jsonl", "output_dir": run,
        "use_cpu": "true", "bf16": "false", "max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4,
        "max_completion_length": 8, "save_steps": 1, "logging_steps": 1, "report_to": "tensorboard",
        "log_completions": "true", "fork_report_steps": 1, "push_to_hub": "true", "hub_model_id": "tester/forks",
        "hub_token": TOKEN, "instruction": "{question}",
    }  # fmt: skip
    evaluate = {
        "model": run, "dataset": folder / "evaluation.jsonl", "num_samples": 2, "max_new_tokens": 8,
        "output": run / "evaluation",
    }  # fmt: skip
    analyze = {"model": run, "completions": run / "evaluation" / "completions.jsonl", "output": run / "entropy"}
    return [
        [name, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
        for name, options in (("train", train), ("evaluate", evaluate), ("analyze", analyze))
    ]


def run(number: int, seed: int, folder: Path, progress) -> dict:
    """A training with pushes, an evaluation and an analysis, `number` times, see [`parts`]."""
    found: dict = {"commands": [], "files": 0, "bytes": 0, "leaks": [], "kinds": {}, "secrets": len(SECRETS)}
    assert leaks(f"x{SECRETS['WANDB_API_KEY']}".encode()) == ["WANDB_API_KEY"], "the search finds what is there"
    prepare(folder)
    prepared = {path for path in folder.rglob("*") if path.is_file()}
    with HubStandIn() as hub:
        environment = {
            **os.environ, **SECRETS, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": f"{folder}/hf",
        }  # fmt: skip
        for words in commands(folder):
            done = subprocess.run(
                [sys.executable, "-m", "trl_fork", *words], cwd=ROOT, env=environment, capture_output=True, timeout=900
            )
            found["commands"].append({"name": words[0], "exit_status": done.returncode})
            found["leaks"] += [f"printed by {words[0]}: {n}" for n in leaks(done.stdout + done.stderr)]
            if done.returncode:
                found["tail"] = done.stderr.decode(errors="replace")[-800:]
            progress(f"{words[0]} ended with {done.returncode}", found)
        for name, repository in hub.repositories.items():
            for path, content in repository.files.items():
                count(found, f"{name}/{path}", content)
        cards = "\n".join(hub.cards).encode()
        found["leaks"] += [f"sent for validation: {name}" for name in leaks(cards)]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in prepared:
            count(found, str(path.relative_to(folder)), path.read_bytes())
    return found


def count(found: dict, name: str, content: bytes) -> None:
    found["files"] += 1
    found["bytes"] += len(content)
    kind = Path(name).suffix or Path(name).name
    found["kinds"][kind] = found["kinds"].get(kind, 0) + 1
    found["leaks"] += [f"{name}: {secret}" for secret in leaks(content)]


def summary(found: dict) -> str:
    done = sum(command["exit_status"] == 0 for command in found["commands"])
    return (
        f"{found['files']} files ({found['bytes'] / 1e6:.1f} MB) of {done} commands and what they published searched "
        f"for {found['secrets']} secrets: {len(found['leaks'])} found"
    )

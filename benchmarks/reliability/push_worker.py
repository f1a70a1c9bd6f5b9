"""
Pushes of a trained model to a stand-in for the Hub that fails: a process of its own, as the Hub's client reads the
address when it is imported.

    python -m benchmarks.reliability.push_worker FOLDER NUMBER SEED

Every push prints a line of JSON.
"""

import json
import logging
import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.hub_stand_in import TOKEN, HubStandIn


PLACES = (
    ("POST", "/api/repos/create"),
    ("POST", "/preupload/"),
    ("POST", "objects/batch"),
    ("PUT", "/_lfs/"),
    ("POST", "/_verify"),
    ("POST", "/commit/"),
)
ANSWERS = (401, 503, "cut")


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def hashes(folder: Path) -> dict[str, str]:
    """Files of a run that are published, with their contents."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in files}
    return {
        name: sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not name.startswith(("_", "checkpoint-", "."))
    }


def build(folder: Path):
    import trl_fork.trainer.publishing
    from tests.conftest import FixedRollouts, build_model, build_tokenizer, fixed_reward
    from trl_fork import ForkingGRPOConfig, ForkingGRPOTrainer

    trl_fork.trainer.publishing._RETRY_AFTER = (0.1, 0.1)
    tokenizer = build_tokenizer()
    rollouts = FixedRollouts(tokenizer)
    return ForkingGRPOTrainer(
        model=build_model(tokenizer),
        reward_funcs=fixed_reward,
        args=ForkingGRPOConfig(
            str(folder / "run"), max_steps=1, per_device_train_batch_size=32, num_generations=8, use_cpu=True,
            max_completion_length=16, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
            save_strategy="no", push_to_hub=True, hub_model_id="tester/start",
        ),
        train_dataset=rollouts.dataset,
        processing_class=tokenizer,
        rollout_func=rollouts,
    )  # fmt: skip


def push(trainer, hub, heard: Heard, folder: Path, number: int, generator: random.Random) -> dict:
    """One push, and what was lost of it; a push that fails is finished by the command that it names."""
    hub.failures.clear()
    hub.blobs.clear()
    trainer.hub_model_id, trainer.args.hub_model_id = None, f"tester/push-{number}"
    (folder / "run" / "notes.txt").write_text(f"push {number}")
    failures = {}
    for method, pattern in generator.sample(PLACES, generator.randint(1, 2)):
        answer = generator.choice(ANSWERS)
        failures[f"{method} {pattern}"] = [answer, count := generator.choice((1, 1, 2, 20))]
        hub.failures[method, pattern] = [answer] * count
    heard.lines.clear()
    before = hashes(folder / "run")
    record = {"number": number, "failures": failures, "raised": None, "by_command": None}
    try:
        record["pushed"] = trainer.push_to_hub() is not None
    except Exception as error:
        record |= {"pushed": False, "raised": f"{type(error).__name__}: {error}"[:200]}
    after = hashes(folder / "run")
    record["kept_here"] = {*before} <= {*after} and "model.safetensors" in after
    said = "\n".join(heard.lines)
    record["token_in_log"] = TOKEN in said
    record["said"] = record["pushed"] or "not published" in said.lower()
    hub.failures.clear()
    if not record["pushed"]:
        # HF_ENDPOINT=… hf upload …, as for whoever pastes it into a shell
        command = next(line.strip() for line in said.splitlines() if line.startswith("  ") and " hf upload " in line)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        shell = {"shell": True, "env": {**os.environ, "PATH": path}}
        done = subprocess.run(command, **shell, capture_output=True, text=True, timeout=300)
        record["by_command"] = done.returncode == 0
    repository = hub.repositories.get(f"tester/push-{number}")
    held = {} if repository is None else {name: sha256(data).hexdigest() for name, data in repository.files.items()}
    record["lost"] = [name for name, digest in hashes(folder / "run").items() if held.get(name) != digest]
    return record


def main(folder: str, number: str, seed: str) -> None:
    generator = random.Random(int(seed))
    with HubStandIn() as hub:
        os.environ |= {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": f"{folder}/hf",
        }  # fmt: skip
        trainer = build(Path(folder))
        from trl_fork._logging import logger

        heard = Heard()
        getattr(logger, "logger", logger).addHandler(heard)
        trainer.train()
        for index in range(int(number)):
            print(json.dumps(push(trainer, hub, heard, Path(folder), index, generator)), flush=True)
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The wheel alone: an environment with it and its requirements, outside the checkout, as a user types commands."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer


ROOT = Path(__file__).parents[2]
TINY = ("--max_steps", "2", "--max_completion_length", "8", "--num_generations", "4", "--eval_strategy", "no")
TINY += ("--eval_on_start", "false", "--per_device_train_batch_size", "4", "--logging_steps", "1")


class Shell:
    """Commands in a folder of their own, with nothing of the checkout on the path."""

    def __init__(self, environment: Path, folder: Path):
        self.bin, self.folder = environment / "bin", folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
        self.variables = {**kept, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        self.variables |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"}

    def __call__(self, *words, status: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [str(word) for word in words], cwd=self.folder, env=self.variables, capture_output=True, text=True
        )
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """The wheel in an environment that borrows what else is installed here, but not the checkout."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install", "--quiet"]
    options = ["--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, *options, str(wheel)], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    # Python searches folders that a .pth file names, and does not read the .pth files there: no editable install.
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    return directory


@pytest.fixture(scope="session")
def shell(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "sums.jsonl").write_text(
        "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(8))
    )
    return Shell(environment, folder)


def test_the_package_is_that_of_the_wheel(shell, environment):
    found = shell("python", "-c", "import trl_fork; print(trl_fork.__file__)").stdout.strip()
    assert Path(found).is_relative_to(environment)
    assert not any(Path(path).is_relative_to(ROOT / "trl_fork") for path in found.splitlines())


@pytest.fixture(scope="module")
def trained(shell):
    """Two steps by a recipe that is taken by its name."""
    words = ("--recipe", "quickstart", "--model_name_or_path", "model", "--dataset_name", "sums.jsonl")
    words += ("--eval_dataset_name", "sums.jsonl")
    return shell("trl-fork", "train", *words, "--output_dir", "run", *TINY)


def test_train(trained, shell):
    history = json.loads((shell.folder / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    assert (shell.folder / "run" / "model.safetensors").exists()
    assert "trl-fork evaluate --model run" in trained.stdout


def test_what_is_printed_after_training(trained, shell):
    """The commands as they are printed, but for the number of samples."""
    evaluate, analyze, report = (
        line.split() for line in trained.stdout.splitlines() if line.startswith("    trl-fork ")
    )
    shell(*evaluate, "--num_samples", "1", "--limit", "2")
    results = json.loads((shell.folder / "run" / "evaluation" / "results.json").read_text())
    assert results["sums.jsonl"]["num_problems"] == 2
    shell(*analyze, "--min_token_count", "1")
    assert (shell.folder / "run" / "entropy" / "report.html").stat().st_size > 10_000
    shell(*report)
    assert (shell.folder / "run" / "report" / "report.html").stat().st_size > 10_000


def test_launched_by_accelerate(shell):
    """The module under `accelerate launch`, with a recipe that was copied and changed."""
    assert "my_run.yaml" in shell("trl-fork", "recipes", "quickstart", "--output", "my_run.yaml").stdout
    recipe = shell.folder / "my_run.yaml"
    recipe.write_text(recipe.read_text().replace("outputs/quickstart/start", "model"))
    words = ("--dataset_name", "sums.jsonl", "--output_dir", "launched", *TINY, "--max_steps", "1")
    accelerate = ("python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    shell(*accelerate, "-m", "trl_fork", "train", "--config", "my_run.yaml", *words)
    assert (shell.folder / "launched" / "model.safetensors").exists()


def test_recipes(shell):
    listed = shell("trl-fork", "recipes").stdout
    names = {path.stem for path in ROOT.glob("configs/*/*.yaml") if path.parent.name != "credit"}
    assert len(names) > 12 and all(f" {name} " in listed for name in names)
    recipe = ROOT / "configs" / "recipes" / "qwen3_8b_forking.yaml"
    assert shell("trl-fork", "recipes", recipe.stem).stdout == recipe.read_text()


def test_the_version(shell):
    assert shell("python", "-m", "trl_fork", "--version").stdout == shell("trl-fork", "--version").stdout


@pytest.mark.distributed
def test_two_processes_by_a_launch_file_of_the_wheel(shell):
    """With a reward of the working directory, which says where it was asked."""
    (shell.folder / "witness.py").write_text(
        "import os, pathlib\n"
        "def length(completions, **kwargs):\n"
        "    pathlib.Path('rank' + os.environ['RANK']).touch()\n"
        "    return [float(len(str(completion))) for completion in completions]\n"
    )
    launch = ("--accelerate_config", "ddp", "--num_processes", "2", "--main_process_port", "0", "--mixed_precision=no")
    words = ("--recipe", "quickstart", "--model_name_or_path", "model", "--dataset_name", "sums.jsonl")
    words += ("--reward_funcs", "witness.length", "--output_dir", "two", *TINY)
    done = shell("trl-fork", "train", *launch, *words)
    assert done.stdout.count("Next:") == 1
    assert sorted(path.name for path in shell.folder.glob("rank*")) == ["rank0", "rank1"]
    history = json.loads((shell.folder / "two" / "trainer_state.json").read_text())["log_history"]
    assert all(entry["grad_norm"] > 0 for entry in history if "loss" in entry)

    failed = shell("trl-fork", "train", *launch, *words, status=1)  # the same folder again
    assert "holds another run" in failed.stderr

    sampling = ("--num_samples", "3", "--max_new_tokens", "4", "--output", "two/evaluation")
    shell("trl-fork", "evaluate", *launch, "--model", "two", "--dataset", "sums.jsonl", *sampling)
    lines = (shell.folder / "two" / "evaluation" / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 8 * 3
